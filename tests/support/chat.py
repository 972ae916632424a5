"""Tiny random chat models: a family's template and network kind with a vocabulary that is given."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import torch

from glmkit.families.family import family_named
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.chat_template import NO_TOOLS, ChatTemplate
from glmkit.tokenizer.inputs import InputTokenizer
from support.shared import shared_dir
from support.tiny import tiny_config

CAUSAL: dict[str, Any] = {"mask": "causal", "positions": "rope", "rope_fraction": 0.5, "norm": "rms", "mlp": "swiglu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "chatglm": {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first"},
    "chatglm2": CAUSAL | {"num_kv_heads": 2},
    "chatglm3": CAUSAL | {"num_kv_heads": 2},
    "glm-4": CAUSAL | {"num_kv_heads": 2},
}
VOCABULARIES = {
    "chatglm": "chatglm-6b",
    "chatglm2": "chatglm2-chatglm3",
    "chatglm3": "chatglm2-chatglm3",
    "glm-4": "glm4",
}


def chat_model(family: str, tokenizer: InputTokenizer, *, seed: int = 3, **changes: Any) -> LM:
    """A model of two small layers with 8192 positions; `changes` go to its config."""
    axes = {"init_std": 0.3, "max_positions": 8192, **NETWORKS[family], **changes}
    config = tiny_config(vocab_size=tokenizer.vocab_size + 5, special=tokenizer.special, family=family, **axes)
    model = GLM(config)
    init_weights(model, config, seed)
    return LM(Parts(Path("model"), config, model.eval(), tokenizer, family=family_named(family)))


def real_chat_model(family: str, **changes: Any) -> LM:
    """The same with the family's published vocabulary."""
    tokenizer = family_named(family).tokenizer(shared_dir("tokenizers", VOCABULARIES[family]), None)
    assert isinstance(tokenizer, InputTokenizer)
    return chat_model(family, tokenizer, **changes)


def say(monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> None:
    """Whatever a model computes, these tokens are the likeliest by far, one after the other."""
    tokens = iter(ids)

    def head(model: GLM, hidden_RH: torch.Tensor) -> torch.Tensor:
        logits_RV = torch.zeros(len(hidden_RH), model.config.vocab_size)
        for row_V in logits_RV:
            row_V[next(tokens)] = 1e4
        return logits_RV

    monkeypatch.setattr(GLM, "head", head)


class WholeReply:
    """The reply as the published code reads it: all of it, again and again."""

    def __init__(self, template: ChatTemplate, offered: AbstractSet[str] = NO_TOOLS) -> None:
        self._template, self._offered, self._text, self._sent = template, offered, "", 0

    def feed(self, text: str) -> None:
        self._text += text

    def shown(self) -> str:
        return self._template.shown(self._text, self._offered)

    def fresh(self, *, final: bool = False) -> str:
        settled = self._template.settled(self._text, self._offered, final=final)
        piece, self._sent = settled[self._sent :], max(self._sent, len(settled))
        return piece

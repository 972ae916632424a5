"""Adapters that we train with more than low-rank updates, in the real `peft`, and PEFT's in ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.published import ids, tiny_model
from glmkit.adapters.attach import attached, new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.lora.lora_adapter import LoraAdapter, LoraOptions
from glmkit.adapters.lora.replaced import Replaced
from glmkit.model import GLM

pytestmark = pytest.mark.sampled(4)

peft = pytest.importorskip("peft", reason="the extra [hf] is not installed")

OPTIONS = {
    "all": LoraOptions(("all",), rank=3, alpha=6),
    "layers": LoraOptions(("all",), rank=2, layers_to_transform=(0, 2), exclude_modules=("k_proj",)),
    "patterns": LoraOptions(("q_proj", "down_proj"), rank=4, rank_pattern={"layers.1.mlp.down_proj": 2}, root=True),
    "bias": LoraOptions(("q_proj",), rank=2, bias="all"),
    "norm": LoraOptions(("q_proj",), rank=2, modules_to_save=("model.norm", "input_layernorm")),
}


def drawn(model: GLM) -> Tensor:
    """The logits with random numbers in the adapter's parameters."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attached(model).parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()(ids(model.config))


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_ours_computes_the_same_in_peft(family: str, case: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    new_adapter(model, OPTIONS[case], seed=1)
    expected = drawn(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    with torch.no_grad():
        found = theirs(ids(model.config))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_of_single_tokens_are_pefts_trainable_tokens(tmp_path: Path) -> None:
    model = tiny_model("chatglm2", tie_embeddings=False)
    rows = (90, 92)
    values = {f"{stem}.weight": torch.randn(2, 32) for stem in ("model.embed_tokens", "lm_head")}
    new_adapter(model, LoraOptions(("q_proj",), rank=2), seed=1)
    adapter = attached(model)
    assert isinstance(adapter, LoraAdapter)
    adapter.take_off(model)
    adapter.replaced.values = {name: Replaced(torch.nn.Parameter(value), rows) for name, value in values.items()}
    adapter.put_on(model)
    expected = drawn(model)
    save_adapter(model, tmp_path / "a")
    tokens = ids(model.config)
    tokens[0, 1], tokens[1, 3] = 90, 92
    again = tiny_model("chatglm2", tie_embeddings=False)
    apply_adapter(again, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again(ids(model.config)), expected)
        theirs = peft.PeftModel.from_pretrained(tiny_model("chatglm2", tie_embeddings=False), tmp_path / "a").eval()
        table = theirs.base_model.model.model.embed_tokens(tokens)
        torch.testing.assert_close(table, again.model.embed_tokens(tokens))
        hidden = torch.randn(3, 32)
        torch.testing.assert_close(theirs.base_model.model.lm_head(hidden), again.head(hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_whole_tables_of_peft_become_ours(tied: bool, tmp_path: Path) -> None:
    """PEFT's copies of table and head; of a tied model one copy serves both."""
    base = tiny_model("chatglm2", tie_embeddings=tied)
    saved = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": saved, "bias": "none"}
    torch.manual_seed(3)
    theirs = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tiny_model("chatglm2", tie_embeddings=tied)
    apply_adapter(ours, tmp_path / "theirs")
    wrapped = theirs.base_model.model
    assert torch.equal(ours.model.embed_tokens.weight, wrapped.model.embed_tokens.modules_to_save.default.weight)
    if tied:
        assert ours.lm_head is None
        assert torch.equal(ours.head_weight, ours.model.embed_tokens.weight)
    else:
        assert torch.equal(ours.head_weight, wrapped.lm_head.modules_to_save.default.weight)

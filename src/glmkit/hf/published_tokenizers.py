"""The published tokenizer classes: what each builds around texts, conversations and blanks, and the choice among them.

Legend: B batch, T tokens of a row, G columns of an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchEncoding

from glmkit.families.common.role_chat import RoleTemplate
from glmkit.families.common.round_chat import RoundTemplate
from glmkit.families.family import Family
from glmkit.objective.choice_inputs import build_choice_inputs
from glmkit.objective.generation_inputs import build_generation_inputs
from glmkit.tokenizer.chat_template import Message, to_messages
from glmkit.tokenizer.trained import TrainedTokenizer

from .tokenization import CoreTokenizer


class ChatGLMTokenizer(CoreTokenizer):
    """Tokenizers of ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B: one published name, what it does is said by the files."""


class BehindTokenizer(CoreTokenizer):
    """ChatGLM-6B: texts are followed by [gMASK] <sop>; padded rows carry (1,T,T) masks, True = hidden, and (2,T)
    positions.
    """

    counts_positions = False

    def __init__(self, core: Any, template: Any = None, **settings: Any) -> None:
        """Say among the settings how many image codes stand before <unk>, the first id of texts."""
        super().__init__(core, template, **{**settings, "num_image_tokens": core.special.unk})

    def _special_names(self) -> dict[str, str]:
        named = super()._special_names()
        return {**named, "bos_token": named["sop_token"], "end_token": "</s>"}

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: Any = "do_not_pad",
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> Any:
        if getattr(padding_strategy, "value", padding_strategy) == "do_not_pad":
            return encoded_inputs
        row = list(encoded_inputs["input_ids"])
        longest = getattr(padding_strategy, "value", padding_strategy) == "longest"
        side: Any = padding_side or self.padding_side
        batch = self.core.pad_batch(
            [row], length=len(row) if longest else max_length, multiple_of=pad_to_multiple_of, side=side
        )
        padded = batch.input_ids[0]
        padded[~batch.attention_mask[0]] = self.pad_token_id
        encoded_inputs["input_ids"] = padded.tolist()
        if return_attention_mask is not False:
            encoded_inputs["attention_mask"] = ~batch.visible()[0]
        encoded_inputs["position_ids"] = batch.position_ids[0]
        return encoded_inputs


class RoundTokenizer(CoreTokenizer):
    """ChatGLM2-6B: `build_prompt` writes a conversation in numbered rounds."""

    def get_prefix_tokens(self) -> list[int]:
        """The ids in front of every text."""
        return self.build_inputs_with_special_tokens([])

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """The text of a conversation that waits for an answer."""
        assert self.template is not None
        return self.template.text([*to_messages(history or []), Message("user", query)])


class RoleTokenizer(CoreTokenizer):
    """ChatGLM3-6B and GLM-4: conversations as messages behind role tokens.

    encode_special_tokens: whether special strings in a text become their ids.
    """

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name, roles too."""
        assert self.template is not None
        roles = (f"<|{role}|>" for role in self.template.roles)
        return {**super().special_tokens, **{token: self._require(token) for token in roles}}

    @property
    def encode_special_tokens(self) -> bool:
        """The core's switch."""
        return bool(getattr(self.core, "encode_special_tokens", True))

    @encode_special_tokens.setter
    def encode_special_tokens(self, value: bool) -> None:
        self.core.encode_special_tokens = bool(value)

    def get_prefix_tokens(self) -> list[int]:
        """The ids in front of every text."""
        return self.build_inputs_with_special_tokens([])

    def build_single_message(self, role: str, metadata: str, message: str, tokenize: bool = True) -> list[int] | str:
        """One message, ids or text."""
        assert isinstance(self.template, RoleTemplate)
        own = Message(role, message, metadata)
        self.template.check_roles([own])
        return self.template.message_ids(self.core, own) if tokenize else self.template.message_text(own)

    def build_chat_input(
        self, query: str, history: Sequence[Mapping[str, object]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """The inputs (1,T) of a conversation that waits for the assistant."""
        assert self.template is not None
        messages = [*to_messages(history or []), Message(role, query)]
        row = self.template.build(self.core, messages)
        return self.pad({"input_ids": [row]}, return_tensors="pt")


class BlankTokenizer(CoreTokenizer):
    """GLM (2022): inputs for filling a blank, and for choosing among answers to it."""

    counts_positions = False

    def __init__(self, core: Any, template: Any = None, **settings: Any) -> None:
        """Read special strings in texts as the classes beside the weights do, not as the training code does."""
        super().__init__(core.with_options(reading="hub"), template, **settings)

    def _special_names(self) -> dict[str, str]:
        core, special = self.core, self.core.special
        named = super()._special_names()
        for name in named:
            index = getattr(special, name.removesuffix("_token"))
            if index < core.model.size:  # the vocabulary's own name, which the training code does not use
                named[name] = core.model.token(index)
        if core.kind == "chinese":
            named["unk_token"] = "[UNK]"  # id 0; the training code has another one
        if core.kind == "gpt2":
            named["bos_token"] = named["unk_token"] = named["eos_token"]
        elif core.kind == "roberta":
            named["bos_token"] = named["cls_token"]
        return named

    @property
    def mask_token_ids(self) -> list[int]:
        """Ids of the tokens that a blank can be."""
        special = self.core.special
        return list(dict.fromkeys(i for i in (special.mask, special.smask, special.gmask) if i is not None))

    def build_inputs_for_generation(
        self,
        model_input: Mapping[str, Any],
        max_gen_length: int = 512,
        targets: Any = None,
        padding: bool = False,
    ) -> BatchEncoding:
        """Rows with the first blank opened behind them: input_ids, position_ids (B,2,T+G) and a mask over all columns.

        Without targets the mask is called generation_attention_mask, for `generate`; with them it is attention_mask,
        and labels say what each column predicts, -100 elsewhere. Raises DataError for a row without a blank.
        """
        ids, mask = (torch.as_tensor(model_input[name]).tolist() for name in ("input_ids", "attention_mask"))
        answers = None
        if targets is not None:
            answers = [self._answer(one) for one in ([targets] if isinstance(targets, str) else targets)]
        made = build_generation_inputs(
            ids, mask, self.core.special, max_gen_length=max_gen_length, targets=answers, padding=padding
        )
        out = {"input_ids": torch.from_numpy(made.input_ids), "position_ids": torch.from_numpy(made.position_ids)}
        seen = torch.from_numpy(made.attention_mask).long()
        if made.labels is None:
            return BatchEncoding({**out, "generation_attention_mask": seen})
        return BatchEncoding({**out, "attention_mask": seen, "labels": torch.from_numpy(made.labels)})

    def _answer(self, text: Any) -> list[int]:
        ids = self._ids(text) if isinstance(text, str) else list(text)
        return [index for index in ids if index >= 0]

    def build_inputs_for_multiple_choice(
        self, model_input: Mapping[str, Any], choices: Sequence[Sequence[str]], max_length: int | None = None
    ) -> BatchEncoding:
        """Rows with every answer behind them: input_ids, position_ids, attention_mask, choice_ids, choice_indices."""
        ids, mask = (torch.as_tensor(model_input[name]).tolist() for name in ("input_ids", "attention_mask"))
        rows = [[self._answer(choice) for choice in own] for own in choices]
        made = build_choice_inputs(ids, mask, rows, self.core.special)
        return BatchEncoding(
            {
                "input_ids": torch.from_numpy(made.input_ids),
                "position_ids": torch.from_numpy(made.position_ids),
                "attention_mask": torch.from_numpy(made.attention_mask).long(),
                "choice_ids": [[torch.from_numpy(one) for one in own] for own in made.choice_ids],
                "choice_indices": [[torch.from_numpy(one) for one in own] for own in made.choice_indices],
            }
        )


class GLMKitTokenizer(CoreTokenizer):
    """A tokenizer that glmkit trained."""

    counts_positions = False


def _named(base: type[CoreTokenizer], name: str, *others: type[CoreTokenizer]) -> type[CoreTokenizer]:
    """A class under a published name, found again by its qualified one."""
    made = type(name, (base, *others), {"__module__": __name__, "__qualname__": f"{base.__name__}.{name}"})
    setattr(base, name, made)
    return made


# Published names -> classes. One name serves three generations; the files say which is meant.
_BEHIND, _ROUNDS, _ROLES_3, _ROLES_4 = (
    _named(BehindTokenizer, "ChatGLMTokenizer", ChatGLMTokenizer),
    _named(RoundTokenizer, "ChatGLMTokenizer", ChatGLMTokenizer),
    _named(RoleTokenizer, "ChatGLMTokenizer", ChatGLMTokenizer),
    _named(RoleTokenizer, "ChatGLM4Tokenizer"),
)
_BLANKS = {
    kind: _named(BlankTokenizer, f"GLM{name}Tokenizer")
    for kind, name in {"chinese": "Chinese", "gpt2": "GPT2", "bert": "Bert", "roberta": "Roberta"}.items()
}
NAMES = {
    "ChatGLMTokenizer": ChatGLMTokenizer,
    "ChatGLM4Tokenizer": _ROLES_4,
    "GLMKitTokenizer": GLMKitTokenizer,
    **{made.__name__: made for made in _BLANKS.values()},
}


def class_of(family: Family | None, core: Any) -> type[CoreTokenizer]:
    """The class that offers what the published one of this tokenizer offers."""
    if family is None or isinstance(core, TrainedTokenizer):
        return GLMKitTokenizer
    if isinstance(family.chat, RoundTemplate):
        return _ROUNDS if family.chat.opened else _BEHIND
    if isinstance(family.chat, RoleTemplate):
        return _ROLES_3 if family.chat.spaced else _ROLES_4
    return _BLANKS.get(getattr(core, "kind", ""), GLMKitTokenizer)


CoreTokenizer.class_of = staticmethod(class_of)

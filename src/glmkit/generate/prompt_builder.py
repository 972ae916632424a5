"""Prompts from a text, a conversation or a text with blanks, in the published form of the model's family."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError, TokenizerError
from glmkit.families.family import first_verb
from glmkit.loading import Parts
from glmkit.tokenizer.chat_template import ChatTemplate, Message
from glmkit.tokenizer.dialogue import Dialogue, Limits
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.protocol import Tokenizer

from .blank_text import BlankText
from .params import check_type
from .prompt import Prompt
from .wording import Wording

_UNLIMITED = Limits(1 << 30, 1 << 30)  # tokens; what is too long for the model is refused elsewhere


class Prompts:
    """Makes the prompts of one model.

    adapter: the one that reads them, None for the model alone. wording: the words that users' texts get.
    """

    def __init__(self, parts: Parts, adapter: str | None = None) -> None:
        self._parts, self.adapter = parts, adapter
        self.wording = Wording(parts.taught, parts.template)

    @property
    def config(self) -> GLMConfig:
        """The model's configuration."""
        return self._parts.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Raise TokenizerError when the model's directory ships none."""
        parts = self._parts
        if parts.tokenizer is None:
            files = ("tokenizer.json", *(parts.family.tokenizer_files if parts.family else ()))
            raise TokenizerError(
                f"{parts.directory} has no tokenizer (none of {', '.join(files)}); give one with tokenizer=DIR"
            )
        return parts.tokenizer

    @property
    def special(self) -> SpecialIds:
        """Special ids of the config, else of the tokenizer. Raises TokenizerError when there is neither."""
        return self._parts.config.special or self.tokenizer.special

    @property
    def template(self) -> ChatTemplate:
        """The form of conversations. Raises RequestError for a family that was not taught to chat."""
        family = self._parts.family
        template = None if family is None else family.chat
        if template is None:
            title = self._parts.config.family if family is None else family.title
            raise RequestError(f"{title} was not taught to chat", step="use fill or generate", code="not_a_chat_model")
        return template

    @property
    def chat_tokenizer(self) -> InputTokenizer:
        """The tokenizer of the model's own family. Raises TokenizerError or RequestError when it is another."""
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, InputTokenizer):
            raise RequestError(
                f"{self._parts.directory} has no tokenizer of its family, which chat needs; give tokenizer=DIR"
            )
        return tokenizer

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer: those that the model's files name, end of piece and end of text."""
        config, generation = self._parts.config, self._parts.generation
        special = config.special
        if special is None and self._parts.tokenizer is not None and self._fills_spans:
            special = self._parts.tokenizer.special
        own: set[int] = set() if special is None else {special.eop, special.eos}
        # A model of spans ends them as it was trained to; what its files name is for models that continue a row.
        own |= {*self._parts.taught.stop_ids}
        return frozenset(own if self._fills_spans else own | {*generation.stop_ids})

    @property
    def padding_ids(self) -> range:
        """Rows of the vocabulary that stand for nothing; none are known without a tokenizer."""
        config, tokenizer = self._parts.config, self._parts.tokenizer
        return range(config.vocab_size if tokenizer is None else tokenizer.vocab_size, config.vocab_size)

    def continuation(
        self,
        text: str | Sequence[int],
        *,
        own_stops: bool = True,
        whole: bool = True,
        room: int | None = None,
        name: str = "the text",
        worded: bool = False,
    ) -> Prompt:
        """The prompt of a text to continue.

        A text gets the words of `wording`, unless it is `worded`. It becomes part A with a generation mask behind it,
        or gets the tokens that its tokenizer puts around every input, as the family has it; a mask written in it is
        ordinary text. Token ids are taken for the whole prompt, added tokens included: nothing is added, and nothing
        forbidden but the padding rows of the vocabulary. Padding ids in front of them are not read, but count for
        penalties and beam_length "row".
        own_stops False: no id ends the answer but those of the request. whole False: token ids are those of a text,
        worded as they are, and get around them what a text gets; special ones are refused, as no text has them. room:
        the most tokens of prompt and answer. name: how errors call the text. Raises RequestError for no text, for one
        that is too long, and for ids that the model lacks.
        """
        config, generation = self._parts.config, self._parts.generation
        forbidden: set[int] = {*self.padding_ids}
        padding: tuple[int, ...] = ()
        if isinstance(text, str) or not whole:
            ids = self._asking(text, worded) if isinstance(text, str) else self._around(self._of_text(text, name))
            if self._fills_spans:
                forbidden |= self.never_in_spans
                config = replace(config, special=self.special)
        else:
            ids, padding = self._given(text, name)
        return Prompt.of(
            ids,
            config,
            stops=self.stops if own_stops else (),
            forbidden=sorted(forbidden),
            max_positions=room,
            padding=padding,
            running=self._fills_spans and bool(generation.running_positions),
            block_positions=self.block_positions,
            name=name,
            adapter=self.adapter,
        )

    def left_to_right(self, ids: Sequence[int], *, name: str = "the text") -> Prompt:
        """The ids of a text where the model reads them one after the other: nothing but a mask stands in part A.

        The left-to-right protocol of models of spans (`--unidirectional` of `THUDM/GLM` and `THUDM/GLM-130B`); causal
        models read every text so. Raises RequestError as `continuation` does.
        """
        return self._scored([*self._around([]), *ids], name, running=True)

    def window(self, context: Sequence[int], *, name: str = "the text") -> Prompt:
        """The ids of a part of a text, read as a text without words of a template, for what follows it."""
        return self._scored(self._around([*context]), name, running=True)

    def blank(self, text: str, *, name: str = "the text") -> Prompt:
        """The answer to the one blank of a text, as `jobs.infill` asks for it. Raises RequestError for several."""
        _, ids = self.blanks(text, name=name)
        count = sum(token in self.special.mask_ids() for token in ids)
        if count > 1:
            raise RequestError(
                f"{name} has {count} blanks, and an answer to one of them is scored",
                step="put the answers to the others in their places",
            )
        return self._scored([*ids, self.special.sop], name)

    def _scored(self, ids: Sequence[int], name: str, *, running: bool = False) -> Prompt:
        """running: as generation has its positions, where the model was trained so."""
        config = self._parts.config
        if config.mask != "causal":
            config = replace(config, special=self.special)
        return Prompt.of(
            ids or [self.special.eos],  # nothing stands in front of texts: the end of another one does
            config,
            running=running and self._fills_spans and bool(self._parts.generation.running_positions),
            block_positions=self.block_positions,
            name=name,
            adapter=self.adapter,
        )

    def reply(self, ids: Sequence[int]) -> Prompt:
        """The model's reply to a conversation whose ids `template` built."""
        return Prompt.of(
            ids,
            self.config,
            stops=self.chat_stops,
            forbidden=self.padding_ids,
            name="the conversation",
            adapter=self.adapter,
        )

    @property
    def chat_stops(self) -> tuple[int, ...]:
        """Ids that end a reply: the family's and those that the model's files name."""
        own = self.template.stop_ids(self.chat_tokenizer)
        return tuple(dict.fromkeys([*own, *self._parts.generation.stop_ids]))

    def blanks(self, text: str, *, name: str = "the text") -> tuple[BlankText, list[int]]:
        """A text with blanks, and its part A as the model reads it. name: of the text in errors.

        Raises RequestError for a model that fills none, and what `BlankText` raises.
        """
        if self._parts.config.mask == "causal":
            family = self._parts.config.family
            step = f"use {first_verb(family, causal=True)}"
            raise RequestError(f"{family} reads left to right and fills no blanks", step=step)
        read = BlankText(text, self.tokenizer, self.special, called=name)
        special, order = self.special, self._parts.config.blank_order
        # With spans of their own part A is always closed, else where no blank ends it, or never.
        closed = order == "gmask_first" or (order == "mask_first" and read.ids[-1] in special.mask_ids())
        return read, [*self._opening(), *read.ids, *([] if closed else [special.eos])]

    def has_blank(self, text: str) -> bool:
        """True when the model fills blanks and a mask of its own is written in the text."""
        if self._parts.config.mask == "causal":
            return False
        tokenizer = self.tokenizer
        return any(tokenizer.id_to_token(index) in text for index in tokenizer.special.mask_ids())

    @property
    def block_positions(self) -> bool:
        """True when row 1 of the positions counts inside a span, as in training."""
        return self._parts.generation.block_positions is not False

    @property
    def never_in_spans(self) -> set[int]:
        """Ids that mean something to a model of spans and never stand in one, besides those that may end it."""
        special = self.special
        never = {special.pad, special.sop, *special.mask_ids(), special.cls, special.dblock, special.sep}
        return {index for index in never if index is not None} - {special.eop, special.eos}

    @property
    def _fills_spans(self) -> bool:
        """True when a continuation is the span of a generation mask."""
        config = self._parts.config
        return config.mask != "causal" and config.blank_order != "gmask_first"

    def _asking(self, text: str, worded: bool) -> list[int]:
        """The ids of a text, worded, with what the model expects around them."""
        messages = [Message("user", text)] if worded else self.wording.messages([Message("user", text)])
        tuned = self._as_tuned(messages)
        # A template's system text stands directly before the question, as in rows of families without roles.
        text = "".join(message.content for message in messages)
        return self._around(self.tokenizer.encode(text)) if tuned is None else tuned

    def _as_tuned(self, messages: Sequence[Message]) -> list[int] | None:
        """The prompt of a training row, for a model of spans that was tuned; else None.

        What a text becomes in the published pretraining and in fine-tuning differs by the token behind the mask.
        """
        family, taught = self._parts.family, self._parts.taught
        # Lengths are recorded wherever rows of the family's form were trained.
        if not self._fills_spans or taught.source_length is None or family is None or family.tuning is None:
            return None
        dialogue = Dialogue(tuple(messages), (False,) * len(messages), "")
        return family.tuning.prompt(self.tokenizer, dialogue, _UNLIMITED, frozenset(taught.quirks))

    def _around(self, ids: list[int]) -> list[int]:
        """The ids of a text with what the model expects around them."""
        tokenizer = self.tokenizer
        empty, other = (self._as_tuned([Message("user", text)]) for text in ("", "a"))
        if empty is not None and other is not None:
            start = next(i for i, (one, two) in enumerate(zip(empty, other, strict=False)) if one != two)
            return [*empty[:start], *ids, *empty[start:]]
        if self._fills_spans:
            mask = self._parts.generation.generation_mask_id
            return [*self._opening(), *ids, self.special.gmask if mask is None else mask, self.special.sop]
        return tokenizer.build_inputs(ids) if isinstance(tokenizer, InputTokenizer) else ids

    def _of_text(self, ids: Sequence[int], name: str) -> list[int]:
        """Ids that a text may have. Raises RequestError for others, by name."""
        tokenizer, special = self.tokenizer, self.special
        roles = {index for index in vars(special).values() if index is not None} - {special.unk}
        row, size = whole_numbers(ids, name), tokenizer.vocab_size
        for index in {*row}:
            if not 0 <= index < size:
                raise RequestError(f"{name} has the id {index}; the vocabulary's ids are 0 to {size - 1}")
            if index in roles or (not tokenizer.decode([index]) and tokenizer.decode([index], skip_specials=False)):
                token = tokenizer.id_to_token(index)
                raise RequestError(f"{name} has the special id {index}, {token}, which no text has; leave it out")
        return row

    def _given(self, ids: Sequence[int], name: str) -> tuple[list[int], tuple[int, ...]]:
        """Ids of a whole prompt and the padding in front of them."""
        row = whole_numbers(ids, name)
        special, start = self._parts.config.special, 0
        while special is not None and start < len(row) - 1 and row[start] == special.pad:
            start += 1
        return row[start:], tuple(row[:start])

    def _opening(self) -> list[int]:
        cls, added = self.special.cls, self._parts.generation.add_cls
        usual = self._parts.config.blank_order == "each"
        return [cls] if cls is not None and (usual if added is None else added) else []


def whole_numbers(ids: Sequence[int], name: str) -> list[int]:
    """Raise RequestError for what is no list of them."""
    if not isinstance(ids, Iterable) or isinstance(ids, bytes | Mapping):
        raise RequestError(f"text is {reprlib.repr(ids)}; give a text (str), or token ids where they are taken")
    row = [*ids]
    for index in row:
        check_type(f"an id of {name}", index, Integral, "a whole number")
    return [int(index) for index in row]

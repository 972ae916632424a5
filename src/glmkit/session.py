"""The `LM` object: a loaded model with the verbs a person wants."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Unpack

from .checkpoint.configure import ConfigLike
from .config import SpecialIds
from .errors import RequestError, TokenizerError, TrimmedHistoryWarning
from .generate.blanks import BlankText
from .generate.continuing import stream_row
from .generate.conversation import ChatOptions, ChatStep, Turn, chat_template
from .generate.filling import fill_rows, stream_last_span
from .generate.prompt_cache import PromptCache
from .generate.sampling import Sampling, check_type
from .loading import DType, Parts, Quantize, load_parts
from .model import GLM
from .tokenizer.base import IncrementalDecoder, Tokenizer
from .tokenizer.chat import Call, ChatTemplate, History
from .tokenizer.inputs import InputTokenizer


@dataclass(frozen=True)
class Filled:
    """A filled text: `text` with the blanks replaced, `blanks` the answers in order, `ids` their tokens."""

    text: str
    blanks: list[str]
    ids: list[list[int]]


class LM:
    """A model, its tokenizer and its config. Made by `glmkit.load`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.model: GLM = parts.model
        self.config = parts.config
        self.family = parts.config.family

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when the directory ships none."""
        if self.parts.tokenizer is None:
            family = self.parts.family
            files = ("tokenizer.json", *(family.tokenizer_files if family else ()))
            raise TokenizerError(
                f"{self.parts.directory} has no tokenizer (none of {', '.join(files)}); give one with tokenizer=DIR"
            )
        return self.parts.tokenizer

    @property
    def special(self) -> SpecialIds:
        """Special ids of the config, else of the tokenizer."""
        return self.config.special or self.tokenizer.special

    @property
    def chat_template(self) -> ChatTemplate:
        """Prompts and replies of a conversation. Raises RequestError for a family that was not taught to chat."""
        return chat_template(self.parts)

    def fill(
        self,
        text: str,
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        order: str | None = None,
    ) -> Filled:
        """Fill every [MASK], [sMASK] and [gMASK] of a text; later blanks depend on earlier answers.

        max_tokens: longest answer per blank. temperature 0 is greedy. order "shared": one part B after the text
        (GLM's way); "inserted": each answer replaces its blank before the next is asked, all [MASK] first where the
        model prefers one kind (GLM-130B's way); None: the family's own. Raises RequestError for a text without blanks,
        with a blank that the model lacks, or too long, and for a family that fills none.
        """
        return self.fill_many(
            [text], max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, order=order
        )[0]

    def fill_many(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        order: str | None = None,
    ) -> list[Filled]:
        """`fill` for several texts in one batch; each result is the same as alone."""
        check_type("texts", texts, Iterable, "a list of texts")
        if isinstance(texts, str | bytes):
            raise RequestError(f"texts is one {type(texts).__name__}; give a list of texts, or use fill")
        if self.config.mask == "causal":
            raise RequestError(f"{self.family} reads left to right and fills no blanks; use generate")
        texts = list(texts)
        order = order or ("shared" if self.config.blank_order == "each" else "inserted")
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        options: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, **self._fixed()}
        blanked = [BlankText(text, self.tokenizer, self.special, number=number) for number, text in enumerate(texts)]
        rows = [self._part_a(text.ids) for text in blanked]
        if order == "shared":
            spans = fill_rows(self.model, rows, self.special, **options)
        elif order == "inserted":
            spans = [self._fill_inserted(row, options) for row in rows]
        else:
            raise RequestError(f"order is {order!r}; use 'shared' or 'inserted'")
        return [Filled(*text.filled(answers), answers) for text, answers in zip(blanked, spans, strict=True)]

    def generate(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continue a text: it becomes part A, a generation mask stands for everything after it.

        Chat families get the text inside the tokens that their tokenizer puts around every input. A mask written in the
        text is ordinary text here; `fill` fills it. Returns the continuation alone. Raises RequestError as `fill` does.
        """
        pieces = self.stream(
            text, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
        return "".join(pieces)

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The pieces of `generate`'s text as soon as no later token can change them; joined they are that text.

        Whoever stops asking has cancelled the rest. Arguments and errors as in `generate`.
        """
        check_type("text", text, str, "a text (str)")
        check_type("max_new_tokens", max_new_tokens, Integral, "a whole number")
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if self.config.blank_order == "gmask_first" or self.config.mask == "causal":
            ids = self._continuation(text, max_new_tokens, sampling)
        else:
            special, generation = self.special, self.parts.generation
            mask = generation.get("generation_mask_id", special.gmask)
            row = [*self._opening(), *self.tokenizer.encode(text), mask]
            running = bool(generation.get("running_positions", False))
            ids = stream_last_span(
                self.model, row, special, max_tokens=max_new_tokens, sampling=sampling, running=running, **self._fixed()
            )
        return self._decoded(ids)

    def chat(self, query: str, history: History = (), **options: Unpack[ChatOptions]) -> tuple[str | Call, list[Any]]:
        """Answer one turn of a conversation: (response, history for the next call).

        Sampling is the published one of the family unless options say otherwise; `temperature=0` is greedy. A call of
        a tool comes back as {"name", "parameters"}; answer it with role="observation". Turns that do not fit are not
        read, the oldest first, with a TrimmedHistoryWarning; the history given back still has them.
        options: see `Turn`. Raises RequestError as it does, and when a call of a tool cannot be read.
        """
        return self._turn(query, history, options).answer()

    def stream_chat(
        self, query: str, history: History = (), **options: Unpack[ChatOptions]
    ) -> Iterator[tuple[str | Call, list[Any]]]:
        """`chat` while it is made: (response so far, history so far) for each token that shows something.

        The response is always the whole text, as in the published code; its end may still change. The last pair is what
        `chat` gives. Options and errors as in `chat`.
        """
        steps = self._turn(query, history, options).steps()
        return ((step.response, step.history) for step in steps if step.response is not None)

    def chat_steps(self, query: str, history: History = (), **options: Unpack[ChatOptions]) -> Iterator[ChatStep]:
        """`stream_chat` with more to it: new text that is certain, counts, and why the reply ended."""
        return self._turn(query, history, options).steps()

    def prompt_cache(self) -> PromptCache:
        """What `chat(..., cache=...)` keeps between the turns of one conversation, so that only new tokens are read."""
        return PromptCache(self.model)

    def _turn(self, query: str, history: History, options: ChatOptions) -> Turn:
        turn = Turn(self.parts, query, history, **options)
        if turn.dropped:
            warnings.warn(
                f"this conversation with its reply would exceed {turn.limit} tokens; not read: the oldest "
                f"{turn.dropped} of {turn.turns} turns",
                TrimmedHistoryWarning,
                stacklevel=3,
            )
        return turn

    def _decoded(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = IncrementalDecoder(self.tokenizer)
        for index in ids:
            if piece := decoder.push(index):
                yield piece
        if piece := decoder.flush():
            yield piece

    def _continuation(self, text: str, max_tokens: int, sampling: Sampling) -> Iterator[int]:
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text)
        row = tokenizer.build_inputs(ids) if isinstance(tokenizer, InputTokenizer) else ids
        generation, special = self.parts.generation, self.config.special
        stops = set(generation.get("stop_ids", ())) | ({special.eop, special.eos} if special is not None else set())
        tokens = stream_row(
            self.model, row, stops=stops, max_tokens=max_tokens, sampling=sampling, forbidden=self._padding_ids()
        )
        return (token for token in tokens if token not in stops)

    def _part_a(self, ids: list[int]) -> list[int]:
        special, order = self.special, self.config.blank_order
        # With spans of their own part A is always closed, else where no blank ends it, or never.
        closed = order == "gmask_first" or (order == "mask_first" and ids[-1] in special.mask_ids())
        return [*self._opening(), *ids] if closed else [*self._opening(), *ids, special.eos]

    def _opening(self) -> list[int]:
        cls, usual = self.special.cls, self.config.blank_order == "each"
        return [cls] if cls is not None and self.parts.generation.get("add_cls", usual) else []

    def _fixed(self) -> dict[str, Any]:
        block_positions = bool(self.parts.generation.get("block_positions", True))
        return {"forbidden": self._padding_ids(), "block_positions": block_positions}

    def _padding_ids(self) -> range:
        return range(self.tokenizer.vocab_size, self.config.vocab_size)

    def _fill_inserted(self, row: list[int], options: dict[str, Any]) -> list[list[int]]:
        """One blank after the other, those of the kind that the model prefers first, from left to right."""
        special = self.special
        kinds = [token for token in row if token in special.mask_ids()]
        first = {
            "mask_first": (special.mask, special.smask, special.gmask),
            "gmask_first": (special.gmask, special.mask, special.smask),
        }.get(self.config.blank_order)
        waiting = list(range(len(kinds)))
        spans: list[list[int]] = [[] for _ in kinds]
        drawn = 0
        while waiting:
            blank = min(range(len(waiting)), key=lambda place: first.index(kinds[waiting[place]]) if first else place)
            spans[waiting[blank]] = answer = fill_rows(self.model, [row], special, blank=blank, drawn=drawn, **options)[
                0
            ][0]
            places = [index for index, token in enumerate(row) if token in special.mask_ids()]
            row = [*row[: places[blank]], *answer, *row[places[blank] + 1 :]]
            drawn += len(answer) + 1
            del waiting[blank]
        return spans


def load(
    source: str | os.PathLike[str],
    *,
    config: ConfigLike | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    quantize: Quantize | None = None,
    family: str | None = None,
) -> LM:
    """Open a model in any published layout. See `loading.load_parts` for the arguments and errors."""
    return LM(
        load_parts(
            source,
            config=config,
            tokenizer=tokenizer,
            adapter=adapter,
            device=device,
            dtype=dtype,
            quantize=quantize,
            family=family,
        )
    )

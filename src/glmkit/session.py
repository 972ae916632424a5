"""The `LM` object: a loaded model with the verbs a person wants."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from .checkpoint.configure import ConfigLike
from .config import SpecialIds
from .errors import RequestError, TokenizerError
from .generate.continuing import continue_row
from .generate.filling import fill_rows
from .generate.sampling import Sampling, check_type
from .loading import DType, Parts, Quantize, load_parts
from .model import GLM
from .tokenizer.base import Tokenizer
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
        """Fill every [MASK], [sMASK] and [gMASK] of a text, in order; later blanks depend on earlier answers.

        max_tokens: longest answer per blank. temperature 0 is greedy. order "shared": one part B after the text
        (GLM's way); "inserted": each answer replaces its blank before the next is asked (GLM-130B's way); None: the
        family's own. Raises RequestError for a text without blanks or too long, or a family that fills none.
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
        rows = [self._part_a(text) for text in texts]
        if order == "shared":
            spans = fill_rows(self.model, rows, self.special, **options)
        elif order == "inserted":
            spans = [self._fill_inserted(row, options) for row in rows]
        else:
            raise RequestError(f"order is {order!r}; use 'shared' or 'inserted'")
        return [self._filled(text, answer) for text, answer in zip(texts, spans, strict=True)]

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

        Chat families get the text inside the tokens that their tokenizer puts around every input. Returns the
        continuation alone. Raises RequestError as `fill` does.
        """
        check_type("text", text, str, "a text (str)")
        check_type("max_new_tokens", max_new_tokens, Integral, "a whole number")
        if self.config.blank_order == "gmask_first" or self.config.mask == "causal":
            sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
            return self._continue(text, max_new_tokens, sampling)
        special, tokenizer = self.special, self.tokenizer
        mask = self.parts.generation.get("generation_mask_id", special.gmask)
        row = [*self._opening(), *tokenizer.encode(text), mask]
        running = bool(self.parts.generation.get("running_positions", False))
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        spans = fill_rows(
            self.model, [row], special, max_tokens=max_new_tokens, sampling=sampling, running=running, **self._fixed()
        )
        return tokenizer.decode(spans[0][-1])

    def _continue(self, text: str, max_tokens: int, sampling: Sampling) -> str:
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text)
        row = tokenizer.build_inputs(ids) if isinstance(tokenizer, InputTokenizer) else ids
        generation, special = self.parts.generation, self.config.special
        stops = set(generation.get("stop_ids", ())) | ({special.eop} if special is not None else set())
        answer = continue_row(
            self.model, row, stops=stops, max_tokens=max_tokens, sampling=sampling, forbidden=self._padding_ids()
        )
        return tokenizer.decode(answer)

    def _part_a(self, text: str) -> list[int]:
        check_type("text", text, str, "a text (str)")
        special = self.special
        row = [*self._opening(), *self.tokenizer.encode(text, specials=True)]
        order = self.config.blank_order
        # With spans of their own part A is always closed, else where no blank ends it, or never.
        closed = order == "gmask_first" or (order == "mask_first" and bool(row) and row[-1] in special.mask_ids())
        return row if closed else [*row, special.eos]

    def _opening(self) -> list[int]:
        cls = self.special.cls
        return [cls] if cls is not None and self.parts.generation.get("add_cls", True) else []

    def _fixed(self) -> dict[str, Any]:
        block_positions = bool(self.parts.generation.get("block_positions", True))
        return {"forbidden": self._padding_ids(), "block_positions": block_positions}

    def _padding_ids(self) -> range:
        return range(self.tokenizer.vocab_size, self.config.vocab_size)

    def _fill_inserted(self, row: list[int], options: dict[str, Any]) -> list[list[int]]:
        special, masks = self.special, set(self.special.mask_ids())
        spans: list[list[int]] = []
        while True:
            places = [index for index, token in enumerate(row) if token in masks]
            if not places and spans:
                return spans
            drawn = sum(len(span) + 1 for span in spans)
            answer = fill_rows(self.model, [row], special, only_first=True, drawn=drawn, **options)[0][0]
            spans.append(answer)
            row = [*row[: places[0]], *answer, *row[places[0] + 1 :]]

    def _filled(self, text: str, spans: list[list[int]]) -> Filled:
        tokenizer = self.tokenizer
        # A name that the tokenizer takes for ordinary text, as some do with [gMASK], marks no blank.
        named = {index: tokenizer.id_to_token(index) for index in self.special.mask_ids()}
        names = [name for index, name in named.items() if tokenizer.encode(name, specials=True) == [index]]
        pieces = re.split("|".join(re.escape(name) for name in names), tokenizer.without_blank_space(text))
        answers = [tokenizer.decode(span) for span in spans]
        assert len(pieces) == len(answers) + 1, "the text and the tokenizer disagree about the blanks"
        whole = "".join(piece + answer for piece, answer in zip(pieces, [*answers, ""], strict=True))
        return Filled(whole, answers, spans)


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

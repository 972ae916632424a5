"""Byte-level tokenizers with special tokens behind the vocabulary and fixed tokens in front of every input.

The vocabulary is a file of ranks (`bpe_ranks.RankVocabulary`) or a `tokenizer.json` (`byte_bpe.JsonVocabulary`).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError

from .composed import ComposedTokenizer, Decoding, Marker, Reading
from .incremental import ByteText
from .inputs import Side
from .text_model import IdStream, TextModel, as_ids
from .vocabulary_files import write_vocabularies


class ByteModel(TextModel, Protocol):
    """A `TextModel` whose every id stands for bytes. files: the published ones by name."""

    token_bytes: list[bytes]
    files: dict[str, bytes]


class ByteLevelTokenizer(ComposedTokenizer):
    """A `Tokenizer` over a `ByteModel`. Every input begins with the `opening` tokens; there is no form for pairs.

    specials: string -> id of the tokens behind the vocabulary. special: those that have a role. spaced: decoded special
    tokens stand apart by spaces, and an id without a token ends a character, as in the published Python class; without
    it as in a `tokenizer.json`. beside: files that decide nothing more here, which `save` copies, too.
    """

    padding_side: Side = "left"
    truncation_side: Side = "right"

    def __init__(
        self,
        model: ByteModel,
        specials: Mapping[str, int],
        special: SpecialIds,
        *,
        opening: Sequence[str],
        spaced: bool = True,
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(
            model,
            files=model.files,
            special=special,
            names={index: text for text, index in specials.items()},
            reading=Reading([Marker(text, index) for text, index in specials.items()]),
            decoding=Decoding(hidden=frozenset(specials.values())),
        )
        self._token_bytes, self._opening = model.token_bytes, [specials[name] for name in opening]
        self._spaced, self._beside = spaced, dict(beside or {})

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        if pair is not None:
            raise TokenizerError("this tokenizer has no form for two texts", step="join them, or build a conversation")
        return [*self._opening, *ids]

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True, spaced: bool | None = None) -> str:
        """See `Tokenizer`; an id without a token gives nothing. `spaced` overrides the tokenizer's own way."""
        hidden = self.decoding.hidden if skip_specials else frozenset()
        stream = self._around(lambda: self._parts(hidden, spaced))
        return stream.feed(as_ids(ids)) + stream.finish()

    def plain_stream(self) -> IdStream:
        """A decoder that leaves nothing out and adds no spaces."""
        return self._around(lambda: self._parts(frozenset(), False))

    def _runs(self, hidden: frozenset[int]) -> "PartsStream":
        return self._parts(hidden, None)

    def _parts(self, hidden: frozenset[int], spaced: bool | None) -> "PartsStream":
        names = {index: "" if index in hidden else name for index, name in self._names.items()}
        return PartsStream(self._token_bytes, names, spaced=self._spaced if spaced is None else spaced)

    def save(self, directory: str | os.PathLike[str]) -> None:
        super().save(directory)
        write_vocabularies(directory, self._beside)


class PartsStream:
    """Ids to text. Runs of ordinary tokens and single special tokens are parts, joined by spaces when `spaced`.

    names: text of each special id; an empty one is left out without ending the run, so that a character may go on
    behind it. Source of the rule: `huggingface/transformers:src/transformers/tokenization_utils.py` (_decode).
    """

    def __init__(self, token_bytes: Sequence[bytes], names: Mapping[int, str], *, spaced: bool) -> None:
        self._token_bytes, self._names, self._spaced = token_bytes, names, spaced
        self._bytes = ByteText(each=False)
        self._parts = False  # whether there is a part before the run
        self._tokens = self._text = False  # whether the run has tokens, and text

    def feed(self, ids: Sequence[int]) -> str:
        out: list[str] = []
        run: list[bytes] = []
        size, table, names = len(self._token_bytes), self._token_bytes, self._names
        for index in ids:
            if 0 <= index < size:
                run.append(table[index])
                continue
            name = names.get(index)
            if name == "" or (name is None and not self._spaced):
                self._tokens = self._tokens or name is None
                continue
            out += [self._feed_run(run), self._in_run(self._bytes.finish())]
            run = []
            if name is None:
                self._tokens = True
            else:
                out += [self._joint(self._parts or self._text), name]
                self._parts, self._tokens, self._text = True, False, False
        out.append(self._feed_run(run))
        return "".join(out)

    def finish(self) -> str:
        text = self._in_run(self._bytes.finish())
        return text if self._text or not self._tokens else text + self._joint(self._parts)

    def _feed_run(self, run: list[bytes]) -> str:
        self._tokens = self._tokens or bool(run)
        return self._in_run(self._bytes.feed(b"".join(run)))

    def _in_run(self, text: str) -> str:
        if not text or self._text:
            return text
        self._text = True
        return self._joint(self._parts) + text

    def _joint(self, needed: bool) -> str:
        return " " if needed and self._spaced else ""

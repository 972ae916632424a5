"""A vocabulary and special strings made into one tokenizer.

Markers are strings in a text that stand for one id, with the white space that belongs to them.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError

from .added_tokens import ADDED, AddedStream, AddedToken, AddedTokens
from .explain import TokenKind
from .incremental import FilteredStream, clean_up_filters
from .inputs import InputTokenizer
from .protocol import Tokenizer
from .text_model import IdStream, TextModel, as_ids, as_texts, check_id, check_text
from .vocabulary_files import write_vocabularies

Strip = Literal["none", "left", "right", "both"]


@dataclass(frozen=True)
class Marker:
    """A string that stands for one id. strip: on which sides it swallows white space."""

    text: str
    id: int
    strip: Strip = "none"


class MarkerTable:
    """Cuts text at its markers. Where two could begin at one place, the longer is taken."""

    def __init__(self, markers: Iterable[Marker]) -> None:
        self.markers: Mapping[str, Marker] = {marker.text: marker for marker in markers}
        longest_first = sorted(self.markers, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self.markers else None

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """The n + 1 plain parts (any of them may be empty) around the n ids."""
        plain, found = self._cut(text)
        return plain, [self.markers[name].id for name in found]

    def without_space(self, text: str) -> str:
        """The text without the white space that its markers swallow."""
        plain, found = self._cut(text)
        return "".join(part for pair in zip(plain, [*found, ""], strict=True) for part in pair)

    def _cut(self, text: str) -> tuple[list[str], list[str]]:
        if self._pattern is None:
            return [text], []
        parts = self._pattern.split(text)
        plain, found = parts[0::2], parts[1::2]
        for i, name in enumerate(found):
            strip = self.markers[name].strip
            if strip in ("left", "both"):
                plain[i] = plain[i].rstrip()
            if strip in ("right", "both"):
                plain[i + 1] = plain[i + 1].lstrip()
        return plain, found


@dataclass(frozen=True)
class Reading:
    """Rules for reading special strings in a text.

    markers: the strings that become ids. drop_white: a text of white space alone is empty. prepare: a change of the
    text before all else.
    """

    markers: Sequence[Marker]
    drop_white: bool = False
    prepare: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Decoding:
    """Rules for turning ids into text.

    apart: ids that are written as these strings, outside the runs of the vocabulary. joint: what stands between runs
    and such strings. hidden: ids left out with skip_specials; dropped: always. clean_up: the space rules of the
    published decoders. new_run: another decoder for runs than the vocabulary's own.
    """

    apart: Mapping[int, str] = field(default_factory=dict)
    joint: str = ""
    hidden: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    clean_up: bool = False
    new_run: Callable[[], IdStream] | None = None


class ComposedTokenizer(InputTokenizer):
    """A `Tokenizer` of a vocabulary and the ids behind it; a family adds how inputs are built.

    files: the published files by name, which `save` writes back. names: the strings of ids that the vocabulary does not
    have, or calls otherwise.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        files: Mapping[str, bytes],
        special: SpecialIds,
        names: Mapping[int, str],
        reading: Reading,
        decoding: Decoding,
    ) -> None:
        self.model, self.files, self.reading, self.decoding = model, dict(files), reading, decoding
        self._special, self._names = special, dict(names)
        self._ids = {text: index for index, text in self._names.items()}
        self._size = max([model.size - 1, *self._names]) + 1
        self._table = MarkerTable(reading.markers)
        roles = (index for index in vars(special).values() if index is not None)
        self._special_ids = frozenset(roles) | decoding.hidden
        self.added = AddedTokens()
        self._added_names: dict[int, str] = {}
        self._added_table = MarkerTable(())

    def extend(self, added: AddedTokens) -> None:
        """Take tokens behind the published ones: in any text they are one id each, which is decoded to that text."""
        self.added = added
        self._added_names = {token.id: token.text for token in added.tokens}
        self._added_table = MarkerTable(Marker(token.text, token.id, _strip(token)) for token in added.tokens)

    @property
    def vocab_size(self) -> int:
        return max([self._size - 1, *self._added_names]) + 1

    @property
    def special(self) -> SpecialIds:
        return self._special

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        check_text(text)
        plain, found = self._added_table.split(text)
        ids = self._encode(plain[0], specials)
        for mark, part in zip(found, plain[1:], strict=True):
            ids.append(mark)
            if part:
                ids += self._encode(part, specials)
        return ids

    def _encode(self, text: str, specials: bool) -> list[int]:
        """Ids of a text without added tokens."""
        if not specials:
            return self.model.encode(text)
        if self.reading.drop_white and not text.strip():
            return []
        if self.reading.prepare is not None:
            text = self.reading.prepare(text)
        plain, found = self._table.split(text)
        ids = self.model.encode(plain[0])
        for mark, part in zip(found, plain[1:], strict=True):
            ids.append(mark)
            if part:
                ids += self.model.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if self._added_names:
            return [self.encode(text) for text in as_texts(texts)]
        return self.model.encode_batch(as_texts(texts))

    def without_blank_space(self, text: str) -> str:
        return self._table.without_space(text)

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        stream = self.stream(skip_specials=skip_specials)
        return stream.feed(as_ids(ids)) + stream.finish()

    def stream(self, *, skip_specials: bool = True) -> IdStream:
        """A fresh decoder that is fed ids step by step; see `IncrementalDecoder`."""
        rules = self.decoding
        hidden = rules.hidden | rules.dropped if skip_specials else rules.dropped

        def new_run() -> IdStream:
            runs = self._runs(hidden)
            return FilteredStream(runs, clean_up_filters()) if rules.clean_up else runs

        return self._around(new_run)

    def plain_stream(self) -> IdStream:
        """A decoder that leaves nothing out and changes no spaces, for `explain`."""
        return self._around(lambda: self._runs(frozenset()))

    def _around(self, new_run: Callable[[], IdStream]) -> IdStream:
        """A decoder that gives the added tokens, too."""
        return AddedStream(new_run, self._added_names) if self._added_names else new_run()

    def _runs(self, hidden: frozenset[int]) -> IdStream:
        rules = self.decoding
        return RunsStream(rules.new_run or self.model.run, rules.apart, rules.joint, hidden, self._size)

    def id_to_token(self, index: int) -> str:
        (index,) = as_ids((index,))
        check_id(index, self.vocab_size)
        if index in self._added_names:
            return self._added_names[index]
        if index in self._names:
            return self._names[index]
        readable: Callable[[int], str] = getattr(self.model, "readable", self.model.token)
        return readable(index) if index < self.model.size else f"<unused_{index}>"

    def token_to_id(self, token: str) -> int | None:
        """The id of a special string or of an entry as the vocabulary spells it; None when there is none."""
        if token in self._added_table.markers:
            return self._added_table.markers[token].id
        return self._ids[token] if token in self._ids else self.model.find(token)

    def kind_of(self, index: int) -> TokenKind:
        """Special, added, byte or text; see `ExplainedToken`."""
        if index in self._special_ids:
            return "special"
        if index in self._names or index >= self.model.size:
            return "added"
        return "byte" if self.model.is_byte(index) else "text"

    def fingerprint(self) -> str:
        content = {
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()},
            "markers": sorted((m.text, m.id, m.strip) for m in self.reading.markers),
            "drop_white": self.reading.drop_white,
            "size": self._size,
        }
        if self.added.tokens:
            content["added"] = [(token.text, token.id, _strip(token)) for token in self.added.tokens]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        write_vocabularies(directory, {**self.files, **self.added.files})


def with_new_tokens(tokenizer: Tokenizer, texts: Sequence[str], rows: int) -> ComposedTokenizer:
    """A copy of a published tokenizer with more tokens, in the free rows behind all others.

    rows: of the model's embedding. Tokens that were added before stay where they are. Raises TokenizerError for a text
    that is a token of the vocabulary or blank, for more tokens than free rows, and for a tokenizer that has no place
    for tokens of others.
    """
    if not isinstance(tokenizer, ComposedTokenizer):
        what = f"new tokens: a {type(tokenizer).__name__} takes none"
        raise TokenizerError(what, step="train a tokenizer that has them", param="new_tokens")
    there = {token.text for token in tokenizer.added.tokens}
    first, names = tokenizer.vocab_size, [text for text in dict.fromkeys(texts) if text not in there]
    for text in names:
        known = tokenizer.token_to_id(text)
        if known is not None or not text.strip():
            what = f"new tokens: {text!r} is {f'the token {known} already' if text.strip() else 'blank'}"
            raise TokenizerError(what, step="leave it out", param="new_tokens")
    if first + len(names) > rows:
        what = f"{len(names)} new tokens do not fit: the embedding has {rows} rows, {max(0, rows - first)} of them free"
        raise TokenizerError(what, step="add fewer", param="new_tokens")
    added = tokenizer.added
    new = tuple(AddedToken(text, index) for index, text in enumerate(names, first))
    listed = json.loads(added.files.get(ADDED, b"{}")) | {token.text: token.id for token in new}
    files = {**added.files, ADDED: (json.dumps(listed, ensure_ascii=False, indent=2) + "\n").encode()}
    extended = copy.copy(tokenizer)
    extended.extend(AddedTokens((*added.tokens, *new), files, added.notes))
    return extended


def _strip(token: AddedToken) -> Strip:
    if token.left:
        return "both" if token.right else "left"
    return "right" if token.right else "none"


class RunsStream:
    """Decodes runs of vocabulary ids and the strings between them."""

    def __init__(
        self, new_run: Callable[[], IdStream], apart: Mapping[int, str], joint: str, hidden: frozenset[int], size: int
    ) -> None:
        self._new_run, self._apart, self._joint, self._hidden, self._size = new_run, apart, joint, hidden, size
        self._run: IdStream | None = None
        self._started = False

    def feed(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for index in ids:
            check_id(index, self._size)
            if index in self._hidden:
                continue
            name = self._apart.get(index)
            if name is None:
                run.append(index)
                continue
            parts += self._feed_run(run)
            run = []
            parts += (self.finish(), self._next_joint(), name)
        parts += self._feed_run(run)
        return "".join(parts)

    def _feed_run(self, ids: list[int]) -> tuple[str, ...]:
        if not ids:
            return ()
        joint = ""
        if self._run is None:
            joint, self._run = self._next_joint(), self._new_run()
        return joint, self._run.feed(ids)

    def finish(self) -> str:
        run, self._run = self._run, None
        return "" if run is None else run.finish()

    def _next_joint(self) -> str:
        joint = self._joint if self._started else ""
        self._started = True
        return joint

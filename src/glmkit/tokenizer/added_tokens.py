"""Tokens that somebody added behind a published vocabulary, as the files beside it declare them.

Sources: `huggingface/transformers:src/transformers/tokenization_utils.py` (which files, and ids where none are stated).
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from glmkit.errors import TokenizerError, shorten
from glmkit.small_files import parse_small_json, read_small

from .text_model import IdStream

ADDED, SETTINGS, MAP, FAST = "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
_LIMITS = {ADDED: 4 << 20, SETTINGS: 4 << 20, MAP: 1 << 20, FAST: 64 << 20}  # bytes
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_MOST_DIGITS = 18  # of an id
_AGAIN = "correct the file, or take all tokenizer files from one model"


@dataclass(frozen=True)
class AddedToken:
    """A text that stands for one id wherever it occurs. left, right: it swallows the white space on that side."""

    text: str
    id: int
    left: bool = False
    right: bool = False


@dataclass(frozen=True)
class AddedTokens:
    """Tokens behind a vocabulary, without gaps. files: those that declare them. notes: what was not read."""

    tokens: tuple[AddedToken, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Vocabulary(Protocol):
    """A published vocabulary with its special tokens."""

    @property
    def vocab_size(self) -> int: ...
    def id_to_token(self, index: int) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...


@dataclass
class _Declared:
    file: str
    text: str
    id: int | None
    left: bool = False
    right: bool = False
    single_word: bool = False


def read_added_tokens(
    directory: Path, vocabulary: Vocabulary, rows: int | None, *, published: Collection[str] = ()
) -> AddedTokens:
    """The tokens that the files of a directory add to a vocabulary.

    rows: of the model's embedding, None when unknown. published: names of special tokens that are the family's own
    affair. Raises TokenizerError: an id that is taken, stated twice, outside the table or behind a gap.
    """
    notes: list[str] = []
    found: dict[str, _Declared] = {}
    taken: dict[int, str] = {}
    tables = {name: _read(directory / name, notes) for name in _LIMITS}
    for entry in _declared(directory, tables):
        if entry.text in published or not entry.text:
            if entry.id is not None:
                taken.setdefault(entry.id, entry.text)
            continue
        before = found.setdefault(entry.text, entry)
        if entry.id is not None and before.id not in (None, entry.id):
            raise _clash(directory, entry, f"{before.file} at {before.id}")
        before.id = entry.id if before.id is None else before.id
        before.left, before.right = before.left or entry.left, before.right or entry.right
        before.single_word = before.single_word or entry.single_word
    new = [entry for entry in found.values() if not _is_known(directory, entry, vocabulary)]
    for file, key, text in _roles(tables):
        if text not in found and text not in published and vocabulary.token_to_id(text) is None:
            notes.append(f"{file}: {key} is {text!r}, which is no token here and stays plain text")
    for entry in new:
        if entry.id is not None and taken.setdefault(entry.id, entry.text) != entry.text:
            raise _clash(directory, entry, f"{taken[entry.id]!r} has that id, too")
    free = vocabulary.vocab_size
    for entry in new:
        if entry.id is None:
            while free in taken:
                free += 1
            entry.id = free
            taken[free] = entry.text
            notes.append(f"{entry.file} lists {entry.text!r} without an id; it gets the next one, {free}")
        if entry.single_word:
            notes.append(f"{entry.file}: single_word of {entry.text!r} is not read; it is found inside words too")
    _check(directory, new, taken, vocabulary.vocab_size, rows)
    tokens = tuple(AddedToken(entry.text, entry.id or 0, entry.left, entry.right) for entry in new)
    names = dict.fromkeys(entry.file for entry in new)
    files = {name: (directory / name).read_bytes() for name in names}
    return AddedTokens(tuple(sorted(tokens, key=lambda token: token.id)), files, tuple(notes))


def _is_known(directory: Path, entry: _Declared, vocabulary: Vocabulary) -> bool:
    """True for a token that the vocabulary has at this id. Raises TokenizerError when it has it at another one."""
    own = vocabulary.token_to_id(entry.text)
    if own is None and entry.id is not None and entry.id < vocabulary.vocab_size:
        raise _clash(directory, entry, f"the vocabulary has {vocabulary.id_to_token(entry.id)!r} there")
    if own is not None and entry.id not in (None, own):
        raise _clash(directory, entry, f"the vocabulary has it at {own}")
    return own is not None


def _clash(directory: Path, entry: _Declared, other: str) -> TokenizerError:
    what = f"{directory / entry.file}: puts {entry.text!r} at {entry.id}, but {other}"
    return TokenizerError(what, step=_AGAIN, param=entry.text, code="added_token")


def _check(directory: Path, new: Sequence[_Declared], taken: Mapping[int, str], size: int, rows: int | None) -> None:
    """Raise TokenizerError for an id outside the table, or behind ids that no token has."""
    for entry in sorted(new, key=lambda entry: entry.id or 0):
        assert entry.id is not None
        where = f"{directory / entry.file}: {entry.text!r} has the id {entry.id}"
        if rows is not None and size <= rows <= entry.id:
            raise TokenizerError(
                f"{where}, outside the embedding of {rows} rows", step=_AGAIN, param=entry.text, code="added_token"
            )
        if entry.id > size and entry.id - 1 not in taken:
            gap = max((index + 1 for index in taken if size <= index < entry.id), default=size)
            ids = f"id {gap}" if gap == entry.id - 1 else f"ids from {gap} to {entry.id - 1}"
            what = f"{where}, but no token has the {ids}"
            raise TokenizerError(what, step=_AGAIN, param=entry.text, code="added_token")


# --- files ------------------------------------------------------------------------------------------------------------


def _declared(directory: Path, tables: Mapping[str, Mapping[str, object]]) -> Iterator[_Declared]:
    """Every declaration in the files, those with ids first. Raises TokenizerError for a table of another form."""
    for text, index in tables[ADDED].items():
        yield _Declared(ADDED, text, _whole(directory / ADDED, index, text))
    by_id = tables[SETTINGS].get("added_tokens_decoder") or {}
    if not isinstance(by_id, Mapping):
        raise TokenizerError(f"{directory / SETTINGS}: added_tokens_decoder is no table of tokens by id", step=_AGAIN)
    for key, value in by_id.items():
        index = int(key) if key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS else shorten(key)
        yield _entry(directory, SETTINGS, value, _whole(directory / SETTINGS, index, "a token"))
    fast = tables[FAST].get("added_tokens")
    for value in fast if isinstance(fast, list) else ():
        index = value.get("id") if isinstance(value, Mapping) else None
        yield _entry(directory, FAST, value, _whole(directory / FAST, index, "a token"))
    for name, key in itertools.product((SETTINGS, MAP), _LISTS):
        listed = tables[name].get(key) or ()
        if isinstance(listed, Mapping) and key != _LISTS[0]:  # newer tokenizers give each a name
            listed = list(listed.values())
        if not isinstance(listed, list | tuple):
            raise TokenizerError(f"{directory / name}: {key} is no list", step=_AGAIN)
        for value in listed:
            yield _entry(directory, name, value, None)


def _entry(directory: Path, file: str, value: object, index: int | None) -> _Declared:
    if isinstance(value, str):
        return _Declared(file, value, index)
    text = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(text, str):
        raise TokenizerError(f"{directory / file}: a token is {value!r}, not a text with its content", step=_AGAIN)
    left, right, single = (value.get(name) is True for name in ("lstrip", "rstrip", "single_word"))
    return _Declared(file, text, index, left, right, single)


def _whole(path: Path, index: object, text: str) -> int:
    if type(index) is not int or index < 0:
        raise TokenizerError(f"{path}: {text!r} has the id {index!r}; it must be a whole number", step=_AGAIN)
    return index


def _read(path: Path, notes: list[str]) -> Mapping[str, object]:
    """The object in a JSON file, {} without one; one that cannot be read is noted."""
    try:
        values = parse_small_json(read_small(path, TokenizerError, limit=_LIMITS[path.name]), path.name, TokenizerError)
    except FileNotFoundError:
        return {}
    except TokenizerError as error:
        notes.append(f"{error.what}; tokens that it adds are unknown")
        return {}
    if isinstance(values, dict):
        return values
    notes.append(f"{path.name} is no object; tokens that it adds are unknown")
    return {}


def _roles(tables: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str, str]]:
    """(file, key, text) of every token that has a part to play, such as `eos_token`."""
    for name in (SETTINGS, MAP):
        for key, value in tables[name].items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if key.endswith("_token") and isinstance(text, str) and text:
                yield name, key, text


# --- decoding ---------------------------------------------------------------------------------------------------------


class AddedStream:
    """Ids to text where added tokens stand for themselves; each run between them is decoded as a text of its own."""

    def __init__(self, new_run: Callable[[], IdStream], names: Mapping[int, str]) -> None:
        self._new_run, self._names = new_run, names
        self._run: IdStream | None = None

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain."""
        parts: list[str] = []
        run: list[int] = []
        for index in ids:
            name = self._names.get(index)
            if name is None:
                run.append(index)
                continue
            parts += (self._feed_run(run), self.finish(), name)
            run = []
        parts.append(self._feed_run(run))
        return "".join(parts)

    def finish(self) -> str:
        """The text that was held back."""
        run, self._run = self._run, None
        return "" if run is None else run.finish()

    def _feed_run(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        if self._run is None:
            self._run = self._new_run()
        return self._run.feed(ids)

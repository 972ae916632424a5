"""The parts of a `tokenizer.json` that its library may build: those of byte-level BPE and unigram, of bounded size.

The library builds and runs whatever a file describes: thirty rules that double a text fill the memory, a regular
expression may take for ever. So a file is looked through before the library sees it. What it raises, panics too, is
turned into errors of ours.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TypedDict, cast

import tokenizers

from glmkit.errors import GLMKitError, TokenizerError, shorten

_PANIC = "PanicException"  # of pyo3, derived from BaseException; no module exports it
_MOST_ENTRIES = 2_000_000  # of a vocabulary, and of its merges
_MOST_ADDED = 20_000
_MOST_STEPS = 8  # in a sequence of parts
_LONGEST_ENTRY = 4096  # characters
_LONGEST_PATTERN = 1000
_MOST_REPEATS = 1000  # of a pattern, the counts of all of them multiplied
# Nothing here makes a text more than a few times longer. Decoders and post-processors are never run.
_KNOWN = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("ByteLevel", "Digits", "Split"),
    "post_processor": ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"),
    "decoder": ("ByteLevel", "ByteFallback", "Fuse"),
    "model": ("BPE", "Unigram"),
}
_INNER = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
    "decoder": "decoders",
}  # fmt: skip
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")
_REPEATS = re.compile(r"(?<!\\[pPx])\{(\d+)(?:,(\d*))?\}")


class Model(TypedDict):
    """The model of a `tokenizer.json`. vocab: of BPE, and of unigram."""

    type: str
    vocab: dict[str, int] | list[tuple[str, float]]


class Added(TypedDict, total=False):
    """A token beside the vocabulary."""

    id: int
    content: str
    special: bool
    lstrip: bool


class Step(TypedDict, total=False):
    """A part that cuts a text, or several."""

    type: str
    pattern: object
    pretokenizers: "list[Step]"


class Content(TypedDict):
    """The parts of a `tokenizer.json` that are looked at."""

    model: Model
    added_tokens: list[Added]
    normalizer: object
    pre_tokenizer: Step | None


def checked_content(content: object, what: str) -> Content:
    """The parsed content of a `tokenizer.json`, each known part in its place.

    Raises TokenizerError, `what` and the reason, for a part that is not known, for more entries than
    any vocabulary has, ids that are no whole numbers, random merges (dropout), and regular expressions that repeat a
    group.
    """
    try:
        return _checked(content)
    except _UnknownError as error:
        raise TokenizerError(f"{what} ({error})", step="copy or download it again") from None


@contextmanager
def library_errors(what: str, step: str | None = None) -> Iterator[None]:
    """Raise TokenizerError, `what` and the library's reason, for whatever a library raises in the block."""
    try:
        yield
    except (GLMKitError, MemoryError):
        raise
    except BaseException as error:  # bare Exception, and panics of a regular expression or of memory
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(f"{what} ({reason})", step=step) from error


def set_plain(tokenizer: tokenizers.Tokenizer) -> None:
    """Have the library cut, pad and recognise nothing on its own, whatever the file says."""
    tokenizer.encode_special_tokens = True  # special strings in a text are text
    tokenizer.no_truncation()
    tokenizer.no_padding()


class _UnknownError(Exception):
    pass


def _checked(content: object) -> Content:
    if not isinstance(content, dict):
        raise _UnknownError("it holds no object")
    for place in _INNER:
        for part in _parts(content.get(place), place):
            if place == "pre_tokenizer":
                _check_split(part)
    model = content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in _KNOWN["model"]:
        raise _UnknownError(f"model type {_shown(kind)} is not one of {', '.join(_KNOWN['model'])}")
    if model.get("dropout"):
        raise _UnknownError(f"its dropout {_shown(model['dropout'])} makes the ids of a text random")
    _check_vocabulary(model)
    added = content.get("added_tokens") or []
    _check_added(added)
    parts = {"model": {"type": kind, **model}, "added_tokens": added}
    return cast(Content, {"normalizer": None, "pre_tokenizer": None, **content, **parts})


def _parts(part: object, place: str) -> Iterator[dict[str, object]]:
    """The parts of one place, those of a sequence one by one."""
    if part is None:
        return
    if not isinstance(part, dict):
        raise _UnknownError(f"its {place} is no object")
    if part.get("type") == "Sequence":
        inner = part.get(_INNER[place])
        if not isinstance(inner, list) or len(inner) > _MOST_STEPS:
            raise _UnknownError(f"its {place} is no list of at most {_MOST_STEPS} parts")
    else:
        inner = [part]
    for step in inner:
        kind = step.get("type") if isinstance(step, dict) else None
        if not isinstance(step, dict) or kind not in _KNOWN[place]:
            raise _UnknownError(f"its {place} {_shown(kind)} is not one of {', '.join(_KNOWN[place])}")
        yield step


def _check_split(part: dict[str, object]) -> None:
    pattern = part.get("pattern")
    if pattern is None:
        return
    texts = list(pattern.values()) if isinstance(pattern, dict) else [pattern]
    if len(texts) != 1 or not isinstance(texts[0], str) or len(texts[0]) > _LONGEST_PATTERN:
        raise _UnknownError(f"its pre_tokenizer has a pattern that is no text of at most {_LONGEST_PATTERN} characters")
    if not isinstance(pattern, dict) or "Regex" not in pattern:
        return
    repeats = prod(max(int(number or 0), int(most or 0), 1) for number, most in _REPEATS.findall(texts[0]))
    if _REPEATED_GROUP.search(texts[0]) or repeats > _MOST_REPEATS:
        raise _UnknownError(f"its pattern {_shown(texts[0])} repeats a group, or something too often")


def _check_vocabulary(model: dict[str, object]) -> None:
    vocabulary, merges = model.get("vocab"), model.get("merges") or []
    if not isinstance(vocabulary, dict | list) or not isinstance(merges, list):
        raise _UnknownError("its model has no vocabulary")
    if max(len(vocabulary), len(merges)) > _MOST_ENTRIES:
        raise _UnknownError(f"its vocabulary or its merges are more than {_MOST_ENTRIES:,}")
    entries: Sequence[object]
    if isinstance(vocabulary, dict):
        entries = list(vocabulary)
        wrong = next((name for name, index in vocabulary.items() if not _is_id(index)), None)
        if wrong is not None:
            raise _UnknownError(f"the id of {_shown(wrong)} is no whole number")
    else:
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in vocabulary):
            raise _UnknownError("its vocabulary is no list of pieces with scores")
        entries = [pair[0] for pair in vocabulary]
    if not all(isinstance(entry, str) and len(entry) <= _LONGEST_ENTRY for entry in entries):
        raise _UnknownError(f"an entry of its vocabulary is no text of at most {_LONGEST_ENTRY} characters")


def _check_added(added: object) -> None:
    if not isinstance(added, list) or len(added) > _MOST_ADDED:
        raise _UnknownError(f"its added_tokens are no list of at most {_MOST_ADDED:,}")
    for entry in added:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(text, str) or not 0 < len(text) <= _LONGEST_ENTRY:
            raise _UnknownError("an added token has no text")
        if not _is_id(entry.get("id")):
            raise _UnknownError(f"the id of the added token {_shown(text)} is no whole number")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _shown(value: object) -> str:
    return shorten(str(value), 60)

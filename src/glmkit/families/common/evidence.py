"""Evidence on the family of a directory, beside the names of its tensors: its config and its small files, as text.

Code is read and never run; the path of the directory says nothing.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from glmkit.tokenizer.bpe_ranks import looks_like_ranks

from .config_keys import FAMILY_KEY

# Weights of a sign. One sure sign decides; without any, the sum of the others makes a guess.
SURE, LIKELY, HINT = 8, 4, 2
RANKS_FILE = "tokenizer.model"  # lines of base64 in GLM-4, a SentencePiece model in the generations before it
_CONFIG, _SETTINGS = "config.json", "tokenizer_config.json"
TEXT_FILES = (
    "tokenization_*.py", "modeling_*.py", "configuration_*.py", _SETTINGS, "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_LIMIT = 1 << 20  # bytes of a file that is looked into
_MOST_DIGITS = 18  # of an id


@dataclass(frozen=True)
class Sign:
    """One observation: how much it says for a family (below zero: against it), and what was seen where."""

    weight: int
    what: str


@dataclass(frozen=True)
class Evidence:
    """A published config ({} without one), the text of small files by name, the kind of vocabulary in tokenizer.model.

    has_ranks: it is a table of ranks (GLM-4), a SentencePiece model (False), or there is none (None).
    """

    config: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    has_ranks: bool | None = None

    @classmethod
    def of(cls, directory: Path, config: Mapping[str, object]) -> "Evidence":
        """Read the small files of a directory; those that cannot be read say nothing."""
        paths = [path for pattern in TEXT_FILES for path in sorted(directory.glob(pattern))]
        found = {path.name: _start(path) for path in paths}
        texts = {name: raw.decode("utf-8", "replace") for name, raw in found.items() if raw is not None}
        vocabulary = _start(directory / RANKS_FILE, 4096, whole=False)
        return cls(config, texts, None if not vocabulary else looks_like_ranks(vocabulary))

    def alone(self, *, config: bool) -> "Evidence":
        """The config alone, or everything but the config."""
        return Evidence(self.config) if config else replace(self, config={})

    def seen(self, *words: str) -> str | None:
        """The first file whose text has any of these words."""
        return next((name for name, text in self.files.items() if any(word in text for word in words)), None)

    def matched(self, pattern: re.Pattern[str]) -> str | None:
        """The first file whose text the pattern matches somewhere."""
        return next((name for name, text in self.files.items() if pattern.search(text)), None)

    @cached_property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(file and key, the name that it gives the model)."""
        found = [(f"{_CONFIG}: _name_or_path", self.config.get("_name_or_path"))]
        settings = self._table(_SETTINGS)
        found += [(f"{_SETTINGS}: {key}", settings.get(key)) for key in ("name_or_path", "_name_or_path")]
        return tuple((where, name) for where, name in found if isinstance(name, str) and name.strip())

    @cached_property
    def tokenizer_family(self) -> object:
        """The family that a tokenizer's settings give by glmkit's key."""
        return self._table(_SETTINGS).get(FAMILY_KEY)

    @cached_property
    def stops(self) -> tuple[tuple[str, int], ...]:
        """(file, id) of every id that ends an answer."""
        found: list[tuple[str, int]] = []
        for name, table in ((_CONFIG, self.config), *((n, self._table(n)) for n in ("generation_config.json",))):
            value = table.get("eos_token_id")
            found += [(name, index) for index in (value if isinstance(value, list) else [value]) if type(index) is int]
        return tuple(found)

    @cached_property
    def added(self) -> Mapping[int, str]:
        """Tokens by id that added_tokens.json and tokenizer_config.json put behind a vocabulary."""
        found: dict[int, str] = {}
        for name, index in self._table("added_tokens.json").items():
            if type(index) is int:
                found[index] = name
        declared = self._table(_SETTINGS).get("added_tokens_decoder")
        for index, entry in declared.items() if isinstance(declared, dict) else ():
            if index.isascii() and index.isdigit() and len(index) <= _MOST_DIGITS and isinstance(entry, dict):
                found[int(index)] = str(entry.get("content"))
        return found

    def _table(self, name: str) -> Mapping[str, object]:
        try:
            values = json.loads(self.files.get(name, "{}"))
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def signs_of_names(evidence: Evidence, family: str, releases: Iterable[str], stems: Iterable[str]) -> list[Sign]:
    """Signs by what config and tokenizer call the model.

    releases: names of published repositories. stems: what people write in names of their own. The last part of a path
    counts; a folder above it, which may hold anything, only hints.
    """
    said = evidence.config.get(FAMILY_KEY)
    signs = [Sign(4 * SURE, f"{_CONFIG}: {FAMILY_KEY} {family!r}")] if said == family else []
    if evidence.tokenizer_family == family:
        signs.append(Sign(SURE, f"{_SETTINGS}: {FAMILY_KEY} {family!r}"))
    published, stems = set(releases), tuple(stems)
    for where, name in evidence.names:
        *above, last = [part for part in re.split(r"[/\\]+", name.lower()) if part] or [""]
        near = next((part for part in reversed(above) if any(stem in part for stem in stems)), None)
        if last in published:
            signs.append(Sign(SURE + HINT, f"{where} {name!r}"))
        elif any(stem in last for stem in stems):
            signs.append(Sign(LIKELY, f"{where} {name!r}"))
        elif near is not None:
            signs.append(Sign(HINT // 2, f"{where} has a folder {near!r}"))
    return signs


def _start(path: Path, count: int = _LIMIT + 1, *, whole: bool = True) -> bytes | None:
    """The first bytes of a file; None for one that is missing, unreadable or (whole) larger than the limit."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            raw = file.read(count)
    except OSError:
        return None
    return None if whole and len(raw) > _LIMIT else raw

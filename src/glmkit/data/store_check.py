"""Search for damage in a token store: the one judgement of `glm pretrain` and `glm doctor`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import DataError, TokenizerError, size_text
from glmkit.files import SAMPLE, Damage, Digest, sha256_file, size_damage

from .encoding import FileFacts
from .store import AGAIN, MANIFEST_FILE, TokenStore, read_manifest


@dataclass(frozen=True)
class StoreVerdict:
    """Result of an inspection. unread: remarks on what was not looked at, none when every byte was."""

    damages: tuple[Damage, ...]
    unread: tuple[str, ...] = ()


def inspect_store(directory: str | os.PathLike[str], *, most: int | None = SAMPLE) -> StoreVerdict:
    """Find the files of a store that are not as they were written.

    most: bytes that are read of a file at most, spread over it; None: everything. Raises DataError when the directory
    holds no manifest of a store, or a damaged one; PermissionError.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    damages: list[Damage] = []
    partly: list[str] = []
    unknown: list[str] = []
    try:
        files = {name: facts for split in manifest["splits"].values() for name, facts in split["files"].items()}
        tokenizer = {name: Digest.from_facts(facts) for name, facts in manifest["tokenizer"].get("files", {}).items()}
        digests = {name: Digest.from_facts(facts) for name, facts in files.items()}
        sizes = {name: int(facts["bytes"]) for name, facts in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST_FILE}: damaged ({error!r})", step=AGAIN) from None
    for name, digest in {**digests, **tokenizer}.items():
        if digest is None:
            if most is not None and sizes[name] > most:
                unknown.append(name)
            damages += _compared(folder / name, files[name], most)
            continue
        found = digest.damage(folder / name, most=most)
        damages += [] if found is None else [found]
        if most is not None and digest.size > most:
            partly.append(f"{name} ({size_text(most)} of {size_text(digest.size)})")
    damages += _structure(folder, list(manifest["splits"])) if not damages else []
    unread = [f"read in part: {', '.join(partly)}"] if partly else []
    unread += [f"no hashes of parts (an earlier version wrote the store): {', '.join(unknown)}"] if unknown else []
    return StoreVerdict(tuple(damages), tuple(unread))


def require_whole(directory: str | os.PathLike[str], *, most: int | None = SAMPLE) -> tuple[str, ...]:
    """Raise DataError naming the first damaged file of a store; the remarks on what was not read."""
    verdict = inspect_store(directory, most=most)
    if verdict.damages:
        raise DataError(str(verdict.damages[0]), step=f"{AGAIN}; glm doctor {directory} shows all", code="damaged")
    return verdict.unread


def _compared(path: Path, facts: FileFacts, most: int | None) -> Iterator[Damage]:
    """Damage of a file with one hash for all of it; a large one is compared only when everything is to be read."""
    found = size_damage(path, facts["bytes"])
    if found is not None:
        yield found
    elif (most is None or facts["bytes"] <= most) and sha256_file(path) != facts["sha256"]:
        yield Damage(path, "is damaged: it holds other bytes than were written")


def _structure(folder: Path, splits: list[str]) -> Iterator[Damage]:
    """Damage of the tokenizer and of counts that do not go together."""
    try:
        for split in splits:
            TokenStore(folder, split)
        if splits:
            TokenStore(folder, splits[0]).tokenizer()
    except (DataError, TokenizerError) as error:
        yield Damage(folder, f"is damaged ({error.what})")

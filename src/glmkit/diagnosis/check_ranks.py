"""Files of model-parallel ranks: gaps in the numbering, and what the files themselves say about their number."""

from collections.abc import Mapping

from glmkit.checkpoint.file_counts import MOST_FILES
from glmkit.checkpoint.foreign import instead_of
from glmkit.errors import names_text, shorten

from .finding import Finding
from .headers import Headers
from .listing import Entry, Listing

# Bookkeeping of the trainers, and the key of PaddleNLP's config: the number of ranks that were saved.
_WORLD_KEYS = ("mp_world_size", "tensor_parallel_degree")


def check_ranks(listing: Listing, headers: Headers, settings: Mapping[str, object]) -> list[Finding]:
    """Findings about the rank files of one directory. `settings` are the plain values of its config file.

    Looked at: gaps, the recorded number of ranks, tensors that one rank has and another lacks.
    """
    ranks = {entry.rank: entry for entry in listing.of("weights") if entry.rank is not None}
    if not ranks:
        return []
    findings: list[Finding] = []
    count = max(ranks) + 1
    if count > MOST_FILES:
        named = shorten(f"{count:,}", 20)
        what = f"{_name_of(ranks, max(ranks))} is one of {named} files by its name; {MOST_FILES:,} are the limit"
        return [Finding("error", what, str(listing.directory), "remove or rename it")]
    promised = _promised(ranks, headers, settings)
    for source, number in promised.items():
        if number > count:
            what = f"{source} speaks of {number} ranks, the last file here is rank {count - 1}"
            step = f"copy the missing files here (rank {names_text(map(str, range(count, min(number, MOST_FILES))))})"
            findings.append(Finding("error", what, str(listing.directory), step))
        elif number < count:
            what = f"{source} speaks of {number} ranks, {count} files are here"
            step = "remove the files of another conversion, or trust the files: they decide"
            findings.append(Finding("warning", what, str(listing.directory), step))
    gaps = [_name_of(ranks, number) for number in range(count) if number not in ranks]
    if gaps:
        what = f"{len(gaps)} of {count} ranks are missing: {names_text(gaps)}"
        step = f"every rank holds a part of each matrix; {instead_of(listing.directory, gaps)}"
        findings.append(Finding("error", what, str(listing.directory), step))
    findings += _check_names(ranks, headers)
    if not findings:
        findings.append(Finding("ok", f"{count} rank{'s' if count > 1 else ''}, none missing", str(listing.directory)))
    return findings


def _promised(ranks: Mapping[int, Entry], headers: Headers, settings: Mapping[str, object]) -> dict[str, int]:
    found: dict[str, int] = {}
    sources: list[tuple[str, Mapping[str, object]]] = [("the config file", settings)]
    for entry in ranks.values():
        if entry.name in headers.files:
            sources.append((entry.name, headers.files[entry.name].extras))
    for source, values in sources:
        for key in _WORLD_KEYS:
            number = values.get(key)
            if type(number) is int and number > 1 and number not in found.values():
                found[f"{source} ({key})"] = number
    return found


def _name_of(ranks: Mapping[int, Entry], number: int) -> str:
    """The name that rank `number` would have, after the pattern of a file that is there."""
    other, entry = next(iter(ranks.items()))
    old = f"{other:02d}"
    head, found, tail = entry.name.partition(f"_{old}_" if f"_{old}_" in entry.name else f"tp{old}")
    return f"{head}{found.replace(old, f'{number:02d}')}{tail}"


def _check_names(ranks: Mapping[int, Entry], headers: Headers) -> list[Finding]:
    names = {
        entry.name: set(headers.files[entry.name].keys()) for entry in ranks.values() if entry.name in headers.files
    }
    everything = set().union(*names.values()) if names else set()
    findings = []
    for name, own in names.items():
        lacking = sorted(everything - own)
        if lacking:
            what = f"{name} lacks tensors that other ranks have: {names_text(lacking)}"
            step = "the ranks are of different checkpoints; copy all of one"
            findings.append(Finding("error", what, name, step))
    return findings

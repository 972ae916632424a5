"""An index and its shards: what is missing, left over, or not where the index says."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from glmkit.checkpoint.detect import read_index
from glmkit.checkpoint.foreign import instead_of
from glmkit.errors import names_text

from .finding import Finding
from .headers import Headers, attempt
from .listing import Entry, Listing

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")
_MOST_SHARDS = 10_000


def check_shards(listing: Listing, headers: Headers) -> list[Finding]:
    """Findings about every index of the directory, and about numbered shards that no index names."""
    findings: list[Finding] = []
    indexed: set[str] = set()
    for entry in listing.of("index"):
        content, finding = attempt(partial(read_index, entry.path), entry.path)
        if finding is not None:
            findings.append(replace(finding, next_step=finding.next_step or "download it again"))
        if content is not None:
            indexed |= set(content[0].values())
            findings += _check_index(entry, *content, listing, headers)
    findings += _check_numbers(listing, indexed)
    return findings


def _check_index(
    entry: Entry, mapping: dict[str, str], metadata: object, listing: Listing, headers: Headers
) -> list[Finding]:
    findings: list[Finding] = []
    shards = sorted(set(mapping.values()))
    present = {other.name for other in listing.entries}
    missing = [name for name in shards if name not in present]
    if missing and len(missing) == len(shards):
        what = f"{entry.name} names {len(shards)} shards and none of them is here"
        step = f"download {names_text(shards)}, or remove the index if other weight files are meant"
        own = [other.name for other in listing.of("weights") if not other.name.endswith(Path(shards[0]).suffix)]
        return [Finding("warning" if own else "error", what, str(entry.path), step)]
    if missing:
        what = f"{len(missing)} of {len(shards)} shards of {entry.name} are missing: {names_text(missing)}"
        findings.append(Finding("error", what, str(entry.path), instead_of(listing.directory, missing)))
    for shard in shards:
        if shard not in headers.files:
            continue
        inside = set(headers.files[shard].keys())
        promised = {tensor for tensor, name in mapping.items() if name == shard}
        if promised - inside:
            what = (
                f"{shard} lacks {len(promised - inside)} tensors of the index: {names_text(sorted(promised - inside))}"
            )
            step = "index and shards are of different releases, or the shard was replaced; download both again"
            findings.append(Finding("error", what, str(listing.directory / shard), step))
        if inside - promised:
            what = f"{shard} holds tensors that the index does not put there: {names_text(sorted(inside - promised))}"
            step = "download index and shards of one release"
            findings.append(Finding("warning", what, str(listing.directory / shard), step))
    if not findings and all(shard in headers.files for shard in shards):
        findings.append(_total(entry, mapping, metadata, headers))
    return findings


def _total(entry: Entry, mapping: dict[str, str], metadata: object, headers: Headers) -> Finding:
    found = sum(headers.files[shard].info(tensor).nbytes for tensor, shard in mapping.items())
    count = len(set(mapping.values()))
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    known = type(total) is int or (isinstance(total, float) and total.is_integer())
    if not isinstance(total, int | float) or not known or int(total) == found:
        what = f"{entry.name}: {len(mapping)} tensors in {count} shards, all there"
        return Finding("ok", what, str(entry.path))
    what = f"{entry.name} promises {int(total):,} bytes of tensors, the shards hold {found:,}"
    step = "harmless if all tensors have the shapes of the config; else download index and shards of one release"
    return Finding("warning", what, str(entry.path), step)


def _check_numbers(listing: Listing, indexed: set[str]) -> list[Finding]:
    """Numbered shards: gaps where no index says what belongs there, and shards that no index of theirs names."""
    findings: list[Finding] = []
    where = str(listing.directory)
    for (stem, count, ending), numbers in _series(listing).items():
        names = [f"{stem}-{number:05}-of-{count}{ending}" for number in sorted(numbers)]
        if any(name.startswith(f"{stem}-") and name.endswith(ending) for name in indexed):
            surplus = [name for name in names if name not in indexed]
            if surplus:
                what = f"shards that the index does not name: {names_text(surplus)}"
                step = "they are not read; remove them, or download index and shards of one release"
                findings.append(Finding("warning", what, where, step))
            continue
        if not any(entry.name in names for entry in listing.of("weights")):
            continue  # shards of a copy that is not read
        wanted = range(1, min(int(count), _MOST_SHARDS) + 1)
        absent = [f"{stem}-{number:05}-of-{count}{ending}" for number in wanted if number not in numbers]
        if absent:
            what = f"{len(absent)} of {int(count)} shards are missing: {names_text(absent)}"
            findings.append(Finding("error", what, where, instead_of(listing.directory, absent)))
        else:
            findings.append(Finding("note", f"{int(count)} shards without an index", where))
    return findings


def _series(listing: Listing) -> dict[tuple[str, str, str], set[int]]:
    """(stem, total, ending) -> the numbers that are there."""
    series: dict[tuple[str, str, str], set[int]] = {}
    for entry in listing.of("weights", "unread"):
        found = _NUMBERED.fullmatch(entry.name)
        if found is not None:
            series.setdefault((found["stem"], found["count"], found["ending"]), set()).add(int(found["number"]))
    return series

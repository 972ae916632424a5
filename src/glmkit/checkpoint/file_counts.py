"""The largest number of files of one checkpoint: nothing is sized by a number in a file's name beyond it."""

from pathlib import Path

from glmkit.errors import CheckpointError, about, shorten

MOST_FILES = 4096  # ranks or shards of one checkpoint; published ones have up to 134


def refuse_count(count: int, path: Path) -> None:
    """Raise CheckpointError for more ranks or shards than any checkpoint has: nothing is sized by a file's name."""
    if count > MOST_FILES:
        with about(path):
            what = f"{path} is one of {shorten(f'{count:,}', 20)} files by its name; {MOST_FILES:,} are the limit"
            raise CheckpointError(what, step="remove or rename it")

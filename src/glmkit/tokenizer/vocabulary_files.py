"""Reading vocabulary files with errors that say what is wrong with the file, and writing the same bytes back."""

import os
from collections.abc import Mapping
from pathlib import Path

from glmkit.errors import TokenizerError
from glmkit.files import atomic_write, inside
from glmkit.small_files import MOST_VOCABULARY_BYTES, leads_out, parse_small_json, read_small

_POINTER = b"version https://git-lfs.github.com/spec/"
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def read_vocabulary(path: str | os.PathLike[str]) -> bytes:
    """Read all bytes of a vocabulary file.

    Raises TokenizerError naming the file and the next step: missing, unreadable, no regular file, too large, empty,
    a git-lfs pointer or a web page saved in its place.
    """
    path = Path(path)
    try:
        data = read_small(path, TokenizerError, limit=MOST_VOCABULARY_BYTES)
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file", step="copy it from the published model's directory") from None
    if not data:
        raise TokenizerError(f"{path}: the file is empty", step="copy or download it again")
    if data.startswith(_POINTER):
        raise TokenizerError(
            f"{path}: a git-lfs pointer, not the file itself", step="run 'git lfs pull' or download the file"
        )
    if data[:64].lstrip().lower().startswith(_PAGES):
        raise TokenizerError(f"{path}: a web page, not a vocabulary", step="download the raw file")
    return data


def decode_vocabulary(data: bytes, source: str) -> str:
    """The text of a vocabulary file's bytes. Raises TokenizerError when they are not UTF-8."""
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{source}: not UTF-8 text at byte {error.start}", step="copy or download it again"
        ) from None


def parse_json(text: str, source: str) -> object:
    """The value of a JSON text. Raises TokenizerError naming the source."""
    return parse_small_json(text, source, TokenizerError, step="copy or download it again")


def check_entries(source: str, entries: int, rows: int | None, published: Mapping[int, int]) -> None:
    """Raise TokenizerError when a model of a published size has another number of vocabulary entries.

    rows: of the model's embedding, None when unknown. published: rows -> entries. A file that was cut off, or is
    another model's, may read well and still give every special token a wrong id.
    """
    expected = entries if rows is None else published.get(rows, entries)
    if entries != expected:
        raise TokenizerError(
            f"{source}: {entries} entries, but the vocabulary of a model with {rows} rows has {expected}; it is cut "
            f"off or another model's, copy or download it again"
        )


def write_vocabularies(directory: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write each file atomically into a directory, which is made when missing.

    Raises TokenizerError when that cannot be done.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with atomic_write(inside(folder, name)) as file:
                file.write(data)
    except OSError as error:
        where = error.filename or folder
        raise TokenizerError(f"{where} cannot be written ({error.strerror})", step="choose another directory") from None


def read_side_files(directory: Path) -> dict[str, bytes]:
    """The small files that lie beside published vocabularies, to be saved with them.

    Not those behind a link that leads out of the directory: they may be anything of the user's.
    """
    paths = [directory / name for name in _SIDE_FILES if (directory / name).is_file()]
    return {path.name: read_small(path, TokenizerError) for path in paths if not leads_out(path)}

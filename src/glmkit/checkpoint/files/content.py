"""Kinds of files, told by their first bytes and never by their names."""

import re
from pathlib import Path

from glmkit.errors import CheckpointError

from .mapping import FileMap

KINDS = {
    "torch": "file of torch.save",
    "torch-legacy": "file of torch.save before torch 1.6",
    "pickle": "pickle as paddle.save writes it",
    "safetensors": "safetensors file",
}
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
POINTER = b"version https://git-lfs"
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<error")
# First bytes -> what such a file is and what to do with it.
_OTHERS = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (b"BZh", "is compressed by bzip2; unpack it first"),
    (b"7z\xbc\xaf", "is a 7-zip archive; unpack it first"),
    (b"GGUF", "is a GGUF file of llama.cpp, whose block formats are not read; download the original weights"),
    (b"lmgg", "is a GGML file of chatglm.cpp, whose block formats are not read; download the original weights"),
    (b"ggml", "is a GGML file of chatglm.cpp, whose block formats are not read; download the original weights"),
    (b"\x93NUMPY", "is a numpy array without a name; weights are files of many named tensors"),
    (b"\x89HDF", "is an HDF5 file; weights are read from torch, Paddle and safetensors files"),
)


def content_kind(file: FileMap) -> str:
    """One of `KINDS`. Raises CheckpointError naming what the file is instead, and the next step."""
    head = file.data[: min(file.size, 1024)]
    check_pointer(file.path, head)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "torch"
    # A header of 128 bytes begins as a pickle does.
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= file.size:
        return "safetensors"
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return "torch-legacy" if head[2:].startswith(_LEGACY_MAGIC) else "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    for start, message in _OTHERS:
        if head.startswith(start):
            raise CheckpointError(f"{file.path} {message}")
    if head[257:262] == b"ustar":
        names = [b"storages", b"tensors", b"pickle", b"sys_info"]
        if any(head.startswith(name) for name in names):
            raise CheckpointError(
                f"{file.path} has the tar format of torch before 0.1.11", step="load and save it with torch 1.x"
            )
        raise CheckpointError(f"{file.path} is a tar archive", step="unpack it first")
    text = head.lstrip().lower()
    if text.startswith(WEB_PAGE):
        raise CheckpointError(
            f"{file.path} is a web page, not the weights (a failed download?)", step="download it again"
        )
    if not any(head):
        raise CheckpointError(
            f"{file.path} begins with {len(head)} zero bytes (a failed download?)", step="download it again"
        )
    if text.startswith((b"{", b"[")):
        raise CheckpointError(
            f"{file.path} is JSON text, not the weights", step="name a .bin, .pt, .pdparams or .safetensors file"
        )
    if head[:1] in (b"c", b"(", b"}", b"]", b"i") or head[:1] == b"\x80":
        raise CheckpointError(f"{file.path}: refused, it may be a pickle of protocol 0 or 1, which no checkpoint uses")
    raise CheckpointError(
        f"{file.path} begins with {head[:8]!r}, which no file of torch, Paddle or safetensors does",
        step="download it again",
    )


def check_pointer(path: Path, head: bytes) -> None:
    """Raise CheckpointError when a file that begins with `head` is what git-lfs leaves in the place of a file."""
    if head.startswith(POINTER):
        found = re.search(rb"\nsize (\d{1,20})\n", head)
        size = f" for {int(found[1])} bytes" if found else ""
        raise CheckpointError(
            f"{path} is a git-lfs pointer{size}, not the file itself", step="run `git lfs pull` in its folder"
        )


def check_content(file: FileMap, kinds: tuple[str, ...]) -> str:
    """The file's kind. Raises CheckpointError unless it is one of `kinds`."""
    kind = content_kind(file)
    if kind not in kinds:
        raise CheckpointError(f"{file.path} is a {KINDS[kind]}, no {KINDS[kinds[0]]}", step="name another file")
    return kind

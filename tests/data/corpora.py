"""Small input files and a small tokenizer for the tests of `glm prepare`."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from glmkit.data.rows import ReadOptions, ReadReport
from glmkit.data.sources import Sources
from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.tokenizer.training import train_tokenizer

TEXTS = [f"Document number {i}: the quick brown fox; 第{i}章，话说天下大势。\n  end" for i in range(60)]


@cache
def tokenizer() -> TrainedTokenizer:
    return train_tokenizer(TEXTS, vocab_size=320)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, packed as its last suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)  # as the zstd program does
    path.write_bytes(data)
    return path


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(*inputs: Path | str, **options: Any) -> list[str]:
    return read_with_report(*inputs, **options)[0]


def read_with_report(*inputs: Path | str, **options: Any) -> tuple[list[str], ReadReport]:
    report = ReadReport()
    return list(Sources(inputs, ReadOptions(**options)).documents(report)), report

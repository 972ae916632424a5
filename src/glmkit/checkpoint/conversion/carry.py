"""Files of a checkpoint that are no weights and mean the same in every layout: tokenizer, generation, licence."""

import fnmatch
from collections.abc import Container
from pathlib import Path

from glmkit.errors import CheckpointError
from glmkit.families.base import Family

LARGEST = 64 << 20
PATTERNS = (
    "generation.json", "generation_config.json", "README*", "LICENSE*", "LICENCE*", "MODEL_LICENSE*", "NOTICE*",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


def carried_files(source: Path, family: Family, *, taken: Container[str]) -> dict[str, bytes]:
    """Contents of the files to copy as they are, by name; none of those in `taken`.

    Raises CheckpointError for one that is far too large for what its name says.
    """
    found: dict[str, bytes] = {}
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name in taken:
            continue
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in (*PATTERNS, *family.tokenizer_files)):
            size = path.stat().st_size
            if size > LARGEST:
                raise CheckpointError(f"{path} has {size:,} bytes, too many for a {path.name}; move it away")
            found[path.name] = path.read_bytes()
    return found

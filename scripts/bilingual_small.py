"""Prepare the corpus of `recipes/pretrain/bilingual-small.yaml` and train it: `bilingual_small.py TEXTS --output DIR`.

TEXTS is a folder of public English and Chinese texts that holds the files of CORPUS; the project ships none of them.
A run that was stopped goes on when the command is given again.
"""

import argparse
import sys
from pathlib import Path

from glmkit.cli.main import main

VOCABULARY = 12_288
# Field of the text ("" = the files are plain text) -> files, in the order in which they are read.
CORPUS: dict[str, tuple[str, ...]] = {
    "text": (
        "text/books/en_alice.txt",
        "text/books/en_moby_dick.txt",
        "text/books/en_pride_and_prejudice.txt",
        "text/books/zh_honglou.txt",
        "text/books/zh_sanguo.txt",
        "text/books/zh_xiyou.txt",
        "text/chinese_poetry/tang_poems_train.txt",
        "text/tinyshakespeare/train.txt",
        "pretrain_jsonl/wiki_demo.txt",
        "pretrain_jsonl/c4_demo.jsonl",
        "pretrain_jsonl/MNBVC_news.jsonl",
        "pretrain_jsonl/MNBVC_qa.jsonl",
        "pretrain_jsonl/MNBVC_wiki.jsonl",
    ),
    "output": ("alpaca_en/alpaca_train.json", "alpaca_zh/zh_train.json", "belle/belle_train.json"),
}
# Of the training texts; the answers are few but the only text of today's Chinese.
SHARES = {"text": 0.75, "output": 0.25}


def commands(texts: Path, output: Path, more: list[str]) -> list[list[str]]:
    """The `glm` commands in order; each is left out where its result is there already."""
    stores = {field: output / "data" / field for field in CORPUS}
    first = next(iter(stores.values()))
    prepare = [
        [
            *("prepare", *(str(texts / name) for name in files), "--output", str(stores[field]), "--text-field", field),
            *("--max-document-bytes", "8192", "--validation-share", "0.02"),
            *(["--vocab-size", str(VOCABULARY)] if stores[field] == first else ["--tokenizer", str(first)]),
        ]
        for field, files in CORPUS.items()
        if not stores[field].exists()
    ]
    data = [word for field, store in stores.items() for word in ("--data", f"{store}={SHARES[field]}")]
    run = str(output / "run")
    return [*prepare, ["pretrain", "bilingual-small", *data, "--output", run, "--resume", "auto", *more]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, help="folder with the files of CORPUS")
    parser.add_argument("--output", type=Path, required=True, help="folder for the stores and the run")
    args, rest = parser.parse_known_args()
    for command in commands(args.texts, args.output, rest):
        status = main(command)
        if status:
            sys.exit(status)

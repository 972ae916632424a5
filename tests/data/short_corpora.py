"""Corpora of short documents: lines of Tang poems, and seeded FASTA records, log lines and molecules."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from data.corpus import Corpus
from glmkit.data.encoding import encode
from glmkit.objective.spans import sentence_end_table
from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.shared import shared_dir


@dataclass(frozen=True)
class Prepared:
    """Documents as a store has them, with their tokenizer and its sentence marks."""

    documents: Corpus
    tokenizer: TrainedTokenizer
    sentence_end: np.ndarray


def tang_lines() -> list[str]:
    text = (shared_dir() / "data" / "text" / "chinese_poetry" / "tang_poems_train.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()][:4000]


def fasta_lines(count: int = 1500, seed: int = 1) -> list[str]:
    """Headers and sequence lines of 60 residues, the last of a record shorter."""
    rng, lines = random.Random(seed), list[str]()
    while len(lines) < count:
        lines.append(f">sp|P{rng.randrange(10**5):05}|PROT_{rng.choice(['HUMAN', 'MOUSE', 'ECOLI'])}")
        residues = "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=rng.randint(20, 300)))
        lines += [residues[k : k + 60] for k in range(0, len(residues), 60)]
    return lines


def log_lines(count: int = 2000, seed: int = 2) -> list[str]:
    rng = random.Random(seed)
    messages = ("GET /api/v1/items/{} 200 {}ms", "connection {} closed by peer after {} s", "retry {} of job {}", "OK")
    return [
        f"2026-11-{rng.randint(1, 30):02}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02} "
        f"{rng.choice(['INFO', 'WARN'])} {rng.choice(messages).format(rng.randrange(10**4), rng.randrange(900))}"
        for _ in range(count)
    ]


def molecules(count: int = 2000, seed: int = 3) -> list[str]:
    rng, pieces = (
        random.Random(seed),
        ("C", "CC", "O", "N", "c1ccccc1", "C(=O)O", "N1CCOCC1", "[nH]", "Cl", "S(=O)(=O)"),
    )
    return ["".join(rng.choices(pieces, k=rng.randint(1, 7))) for _ in range(count)]


CORPORA: dict[str, Callable[[], Sequence[str]]] = {
    "poems": tang_lines,
    "fasta": fasta_lines,
    "log": log_lines,
    "molecules": molecules,
}


@cache
def prepared(name: str) -> Prepared:
    texts = list(CORPORA[name]())
    tokenizer = train_tokenizer(texts[:600], vocab_size=330)
    encoded = encode(tokenizer, texts)
    offsets = np.concatenate([[0], np.cumsum(encoded.lengths)]).astype(np.int64)
    return Prepared(Corpus(encoded.tokens, offsets), tokenizer, sentence_end_table(tokenizer))

"""A prepared token store small enough for a test: sentences from a toy grammar."""

import random
from pathlib import Path

from glmkit.data.store import write_store
from glmkit.tokenizer.training import train_tokenizer

_WORDS = {
    "who": ["the cat", "a dog", "the old sailor", "my sister", "the small robot"],
    "did": ["saw", "liked", "painted", "followed", "forgot"],
    "what": ["the red house", "a long river", "the quiet street", "two green apples", "the moon"],
    "when": ["yesterday", "in the morning", "after the rain", "last winter", "at noon"],
}


def toy_texts(count: int, seed: int = 0) -> list[str]:
    """Documents of a few sentences each."""
    rng = random.Random(seed)
    return [
        " ".join(
            f"{rng.choice(_WORDS['who'])} {rng.choice(_WORDS['did'])} {rng.choice(_WORDS['what'])} "
            f"{rng.choice(_WORDS['when'])}.".capitalize()
            for _ in range(rng.randint(2, 9))
        )
        for _ in range(count)
    ]


def toy_store(directory: Path, *, documents: int = 120) -> Path:
    """A store with a train and a validation split, written at `directory`."""
    texts = toy_texts(documents)
    tokenizer = train_tokenizer(texts, vocab_size=384)
    cut = documents * 9 // 10
    write_store(directory, tokenizer, {"train": texts[:cut], "validation": texts[cut:]})
    return directory

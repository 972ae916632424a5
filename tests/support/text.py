"""Decoding with a vocabulary alone."""

from collections.abc import Sequence

from glmkit.tokenizer.text_model import TextModel


def run_text(model: TextModel, ids: Sequence[int]) -> str:
    """The text of consecutive ids."""
    run = model.run()
    return run.feed(ids) + run.finish()

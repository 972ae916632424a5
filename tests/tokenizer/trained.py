"""Small trained tokenizers for the tests of this folder, made once."""

from functools import cache

from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.tokenizer.training import TokenizerKind, train_tokenizer

CODE = '''def add(self, first, second=12):
    """Add two numbers.  Don't use [MASK]."""
    if first is None:
        return    second
\tresult = first + second
    return result  # 结果
'''
CHINESE = (
    "子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”\n　　曾子曰：“吾日三省吾身。”\n"
)
ENGLISH = "The quick brown fox jumps over the lazy dog; it isn't the first time that the dog was there.\n\n"


@cache
def trained(kind: TokenizerKind, size: int = 380) -> TrainedTokenizer:
    return train_tokenizer([CODE * 3, CHINESE * 3, ENGLISH * 3], vocab_size=size, kind=kind)

"""A rank file made on the spot: all bytes, and pairs joined in an order that a seed decides."""

import base64
import random

from glmkit.config import SpecialIds
from glmkit.tokenizer.bpe_ranks import RankVocabulary
from glmkit.tokenizer.byte_bpe import JsonVocabulary
from glmkit.tokenizer.byte_level import ByteLevelTokenizer

SPECIALS = ("<|end|>", "[MASK]", "[gMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>", "<|observation|>")


def rank_file(seed: int = 0, joined: int = 60, stray: int = 5, alphabet: str = "ab 中é\n") -> bytes:
    """`joined` tokens made of two earlier ones, then `stray` ones that no join leads to."""
    draw = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    parts = [bytes([byte]) for byte in sorted(set(alphabet.encode()))]
    while len(tokens) < 256 + joined:
        token = draw.choice(parts) + draw.choice(parts)
        if token not in tokens and len(token) < 12:
            tokens.append(token)
            parts.append(token)
    while len(tokens) < 256 + joined + stray:
        token = b"".join(draw.choice(parts) for _ in range(3))
        if token not in tokens:
            tokens.append(token)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def tiny_tokenizer(seed: int = 0, *, spaced: bool = True) -> ByteLevelTokenizer:
    vocabulary = RankVocabulary(rank_file(seed))
    ids = {name: vocabulary.size + number for number, name in enumerate(SPECIALS)}
    return with_roles(vocabulary, ids, spaced=spaced)


def with_roles(vocabulary: RankVocabulary | JsonVocabulary, ids: dict[str, int], *, spaced: bool) -> ByteLevelTokenizer:
    """A tokenizer in which SPECIALS have their roles."""
    end, mask, gmask, sop, eop = (ids[name] for name in SPECIALS[:5])
    roles = SpecialIds(pad=end, eos=end, cls=None, mask=mask, smask=None, gmask=gmask, sop=sop, eop=eop)
    return ByteLevelTokenizer(vocabulary, ids, roles, opening=("[gMASK]", "<sop>"), spaced=spaced)

"""Training a tokenizer from a stream of texts, in bounded memory."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from glmkit.errors import TokenizerError

from .byte_tokens import byte_alphabet
from .library import library_errors
from .pretokens import RUST_PATTERN, cut_pieces, is_usual, split_words
from .trained import MASK_ROLES, SPECIAL_STRINGS, TrainedTokenizer
from .unigram import learn_pieces

TokenizerKind = Literal["bpe", "unigram"]

DEFAULT_SAMPLE_BYTES = 64 * 2**20
DEFAULT_VOCAB_SIZE = 32_000
MIN_VOCAB_SIZE = len(SPECIAL_STRINGS) + 256

_SAMPLE_PIECE = 32_768  # characters; long documents are sampled piece by piece
_MAX_WORD_BYTES = 12 * 2**20  # of different words: training then takes about 1.4 GB
_MAX_WORD_LENGTH = 1024  # characters; the time to train on a word grows with the square of its length
_MAX_TOKEN_LENGTH = 48  # characters of the byte alphabet: 48 letters, 16 Chinese characters
_MIN_PAIR_COUNT = 2  # a pair seen once is no pattern


class TextSample:
    """Up to `limit` UTF-8 bytes of the texts added, chosen by hash.

    Long texts are cut into pieces; those with the smallest hashes are kept. So the sample does not depend on the order
    of the texts, and it is all of the text while that fits. Memory: `limit` bytes and a little.

    `texts` stops earlier when the text has very many different words, as long Chinese text has, because the memory of
    training goes with those (about 110 bytes for each of their bytes). `bytes_used` tells how much it gave.
    """

    def __init__(self, limit: int = DEFAULT_SAMPLE_BYTES) -> None:
        if limit < 1:
            raise TokenizerError(f"the sample limit is {limit} bytes; it must be at least 1")
        self.limit = limit
        self.bytes_seen = 0
        self.bytes_kept = 0
        self.bytes_used = 0  # after `texts`
        self._heap: list[tuple[int, bytes]] = []  # largest hash first
        self._ceiling = 1 << 64  # pieces with this hash or a larger one are out for good

    def add(self, text: str) -> None:
        """Offer one text."""
        for piece in cut_pieces(text, _SAMPLE_PIECE):
            data = piece.encode()
            self.bytes_seen += len(data)
            digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
            if not data or digest >= self._ceiling:
                continue
            heapq.heappush(self._heap, (-digest, data))
            self.bytes_kept += len(data)
            while len(self._heap) > 1 and (self.bytes_kept > self.limit or -self._heap[0][0] >= self._ceiling):
                negative, dropped = heapq.heappop(self._heap)  # and its equals, whatever their order of arrival
                self._ceiling = -negative
                self.bytes_kept -= len(dropped)

    def texts(self) -> Iterator[str]:
        """The kept pieces, smallest hash first."""
        words: set[str] = set()
        self.bytes_used = word_bytes = 0
        for _, data in sorted(self._heap, reverse=True):
            text = data.decode()
            self.bytes_used += len(data)
            yield from _bounded(text)
            if self.bytes_kept > _MAX_WORD_BYTES:
                fresh = set(split_words(text)) - words
                word_bytes += sum(len(word.encode()) for word in fresh)
                words |= fresh
                if word_bytes >= _MAX_WORD_BYTES:
                    return


def _bounded(text: str) -> Iterator[str]:
    """The text itself; one with very long words (base64, a rule of 5 MB) as its words, in parts."""
    words = split_words(text)
    if max(map(len, words), default=0) <= _MAX_WORD_LENGTH:
        yield text
        return
    for word in words:
        for start in range(0, len(word), _MAX_WORD_LENGTH):
            yield word[start : start + _MAX_WORD_LENGTH]


def train_tokenizer(
    texts: Iterable[str] | TextSample,
    *,
    vocab_size: int | None = None,
    kind: TokenizerKind = "bpe",
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
    lstrip_masks: bool = False,
) -> TrainedTokenizer:
    """Train a byte-level BPE, or a unigram tokenizer with byte fallback, with GLM's special tokens.

    The same texts give the same tokenizer. Ids: special tokens, then the 256 bytes, then pieces.

    Args:
        texts: any stream of texts (a sample of at most `sample_bytes` UTF-8 bytes is used) or a `TextSample`.
        vocab_size: number of ids, special tokens included, at least 267. None: 32,000, or as many as the text gives.
        lstrip_masks: drop white space on the left of mask tokens when special strings are read from text.

    Raises: TokenizerError when there is no text, or too little of it for the `vocab_size` asked for.
    """
    if kind not in get_args(TokenizerKind):
        raise TokenizerError(f"tokenizer type is {kind!r}", step=f"choose one of {', '.join(get_args(TokenizerKind))}")
    if vocab_size is not None and vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerError(
            f"vocabulary size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE} "
            f"({len(SPECIAL_STRINGS)} special tokens and 256 bytes)"
        )
    if not isinstance(texts, TextSample):
        sample = TextSample(sample_bytes)
        for text in texts:
            sample.add(text)
        texts = sample
    if texts.bytes_kept == 0:
        raise TokenizerError("there is no text to train a tokenizer on")
    size = vocab_size or DEFAULT_VOCAB_SIZE
    with library_errors("no tokenizer can be trained on this text"):
        model = _train_bpe(texts, size) if kind == "bpe" else _train_unigram(texts, size)
    added = [
        AddedToken(text, special=True, normalized=False, lstrip=lstrip_masks and role in MASK_ROLES)
        for role, text in SPECIAL_STRINGS.items()
    ]
    model.add_special_tokens(added)
    tokenizer = TrainedTokenizer(model.to_str(), SPECIAL_STRINGS, source="trained tokenizer")
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        raise TokenizerError(
            f"{texts.bytes_kept:,} bytes of text give a vocabulary of {tokenizer.vocab_size} tokens, fewer than the "
            f"{vocab_size} asked for; ask for at most {tokenizer.vocab_size} or give more text"
        )
    return tokenizer


def _train_bpe(sample: TextSample, vocab_size: int) -> Tokenizer:
    model = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([_split(), byte_level])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=list(SPECIAL_STRINGS.values()),
        initial_alphabet=sorted(byte_alphabet()),
        max_token_length=_MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    model.train_from_iterator(sample.texts(), trainer)
    return model


def _train_unigram(sample: TextSample, vocab_size: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    split = _split()
    for text in sample.texts():
        if is_usual(text):
            counts.update(split_words(text))
        else:
            counts.update(word for word, _span in split.pre_tokenize_str(text))
    pieces = learn_pieces(counts, vocab_size - MIN_VOCAB_SIZE)
    # Neither the specials nor the byte pieces can be met in text: each mixes letters with signs, or has a digit, where
    # the word rule cuts. Their scores are the lowest so that they do not move the score of unknown characters.
    lowest = min((score for _, score in pieces), default=-1.0)
    vocabulary = [(text, lowest) for text in SPECIAL_STRINGS.values()]
    vocabulary += [(f"<0x{byte:02X}>", lowest) for byte in range(256)]
    unknown = list(SPECIAL_STRINGS).index("unk")
    model = Tokenizer(models.Unigram(vocabulary + pieces, unk_id=unknown, byte_fallback=True))
    model.pre_tokenizer = _split()
    model.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return model


def _split() -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(RUST_PATTERN), behavior="isolated")

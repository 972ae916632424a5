"""Learning the pieces of a unigram tokenizer from word counts, by the trainer of the `sentencepiece` library.

The method is Kudo's, "Subword Regularization" (2018), section 3.2. With one thread and its input in order the trainer
gives the same pieces in every run; the one of the `tokenizers` library walks hash maps in random order and does not.
"""

import io
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from glmkit.errors import TokenizerError

MAX_PIECE_LENGTH = 16  # characters
CHARACTER_COVERAGE = 0.9995  # rarer characters are left to the byte pieces
MAX_CHARACTERS = 4_000_000  # of distinct words; the rarest words beyond that are not learnt from

_SPACE = "\u2581"
# The trainer treats white space and these characters in its own way, so other ones stand for them (private use).
_RESERVED = "\0\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_RESERVED += "\u2028\u2029\u202f\u205f\u3000\u2581\u2585"
_TO_PRIVATE = {ord(character): chr(0xF8FF - number) for number, character in enumerate(_RESERVED)}
_FROM_PRIVATE = {ord(other): chr(code) for code, other in _TO_PRIVATE.items()}


def learn_pieces(counts: Mapping[str, int], target: int) -> list[tuple[str, float]]:
    """Up to `target` pieces with their log-probabilities, most probable first.

    `counts` maps words to how often they occur. At most half of the pieces are single characters, unless the text has
    too few repeated substrings for the other half; fewer than `target` pieces come back when it has no more of either.
    Raises TokenizerError when the library fails.
    """
    covering = _covering_characters(counts)
    limit = target // 2
    while True:
        words = _known_parts(counts, covering[:limit])
        pieces = _train(words, target) if words else []
        if len(pieces) >= target or limit >= len(covering):
            return pieces
        limit += target - len(pieces)


def _train(words: Mapping[str, int], target: int) -> list[tuple[str, float]]:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_lines(words),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=target + 2,  # with the unknown piece and the space of `_lines`
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=MAX_PIECE_LENGTH,
            max_sentence_length=1 << 30,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    except (RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise TokenizerError(
            f"SentencePiece's trainer failed ({reason})", step="train a BPE tokenizer, or give more text"
        ) from error
    scores = {str(learnt.IdToPiece(index)): float(learnt.GetScore(index)) for index in range(learnt.GetPieceSize())}
    others = (_SPACE, learnt.IdToPiece(learnt.unk_id()))
    pieces = {piece: score for piece, score in scores.items() if piece not in others}
    total = math.log(math.fsum(map(math.exp, pieces.values())))
    found = [(piece.translate(_FROM_PRIVATE), round(score - total, 6)) for piece, score in pieces.items()]
    return sorted(found, key=lambda item: (-item[1], item[0]))[:target]


def _lines(words: Mapping[str, int]) -> Iterator[str]:
    """Each word with its count, as the trainer reads them.

    It takes for pieces what is seen with different neighbours behind. So that whole words are among them, a word's
    count is shared between the word alone and the word before a space, which is cut off again later.
    """
    for word, count in words.items():
        if count > 1:
            yield f"{word} \t{count // 2}"
        yield f"{word}\t{count - count // 2}"


def _covering_characters(counts: Mapping[str, int]) -> list[str]:
    """The most frequent characters that make up `CHARACTER_COVERAGE` of the text, without our stand-ins."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    total, covered, chosen = sum(characters.values()), 0, list[str]()
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= CHARACTER_COVERAGE * total:
            break
        covered += count
        if ord(character) not in _FROM_PRIVATE:
            chosen.append(character)
    return chosen


def _known_parts(counts: Mapping[str, int], known: Collection[str]) -> dict[str, int]:
    """The words in private characters, most frequent first, cut where characters stood that are not known."""
    table = _TO_PRIVATE | {ord(character): "\0" for character in set().union(*counts).difference(known)}
    parts: Counter[str] = Counter()
    for word, count in counts.items():
        for part in word.translate(table).split("\0"):
            if part:
                parts[part] += count
    kept, size = dict[str, int](), 0
    for part, count in sorted(parts.items(), key=lambda item: (-item[1], item[0])):
        size += len(part)
        if size > MAX_CHARACTERS:
            break
        kept[part] = count
    return kept

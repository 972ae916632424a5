"""The cut of a text into words before the vocabulary is applied: one rule, for two regular-expression engines.

The rule keeps code and Chinese readable: a line break with the indentation after it is one word, an identifier takes
the space before it along (underscores included), every digit stands alone, a run of Chinese characters is never joined
with Latin letters, and runs of spaces stay together. Joining the words gives the text back, character by character.

`RUST_PATTERN` is the definition; it is stored in tokenizer.json. `split_words` is the same rule for Python's `re`,
several times as fast because words can then be looked up in a table; the two agree on every character that `is_usual`
accepts (a test compares them character by character), and all other text takes the first.
"""

import re
from collections.abc import Iterator

# Han blocks as explicit ranges, so that both engines agree whatever Unicode version they know.
_HAN_RANGES = ((0x3005, 0x3005), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD))
_HAN = "".join(f"{chr(first)}-{chr(last)}" for first, last in _HAN_RANGES)

RUST_PATTERN = "|".join(
    (
        r"['’](?:[sdmt]|ll|ve|re)(?!\p{L})",  # English contractions
        f"[{_HAN}]+",
        rf" ?[[\p{{L}}\p{{M}}_]&&[^{_HAN}]]+",  # words and identifiers
        rf" ?[\p{{N}}&&[^{_HAN}]]",  # one digit
        rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}_{_HAN}]+",  # punctuation and symbols
        "[\\r\\n]+[ \\t\u3000]*",  # line breaks with the next line's indentation
        r"[^\S\r\n]+(?!\S)",  # blanks, but the last before a word stays with the word
        r"\s",
    )
)

_WORDS = re.compile(
    "|".join(
        (
            r"['’](?:[sdmt]|ll|ve|re)(?![^\W\d_])",
            f"[{_HAN}]+",
            rf" ?[^\W\d{_HAN}]+",
            r" ?\d",
            rf" ?[^\s\w{_HAN}]+",
            "[\\r\\n]+[ \\t\u3000]*",
            r"[^\S\r\n]+(?!\S)",
            r"\s",
        )
    )
)

# Characters on which both engines agree: ASCII, Latin, Greek and Cyrillic letters, general punctuation, Chinese,
# Japanese, Korean, full-width forms, emoji. Left out: marks, numbers that are not digits, control characters.
USUAL_RANGES = (
    (0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x7E),
    (0xA0, 0xB1), (0xB4, 0xB8), (0xBA, 0xBB), (0xBF, 0x24F),
    (0x391, 0x3A1), (0x3A3, 0x3CE), (0x400, 0x481), (0x48A, 0x4FF),
    (0x1E00, 0x1EFF), (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20BF), (0x2190, 0x22FF), (0x2500, 0x25FF),
    (0x3000, 0x3003), (0x3005, 0x3005), (0x3008, 0x3020), (0x3041, 0x3096), (0x30A1, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1F300, 0x1FAFF),
)  # fmt: skip
_UNUSUAL = re.compile("[^" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in USUAL_RANGES) + "]")

# Places where a word always ends, so that a long text may be cut there without changing any word.
_CUT = re.compile(r"(?<=\S)(?=[ \n])|(?<=[，。！？；：])(?=[\u4e00-\u9fff])")

split_words = _WORDS.findall


def is_usual(text: str) -> bool:
    """True when `split_words` is known to agree with `RUST_PATTERN` on this text."""
    return _UNUSUAL.search(text) is None


def cut_pieces(text: str, size: int) -> Iterator[str]:
    """Pieces of at least `size` characters whose words are exactly the words of the whole text."""
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]

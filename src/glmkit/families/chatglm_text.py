"""Text of ChatGLM-6B. Source: `THUDM/chatglm-6b:tokenization_chatglm.py`."""

from collections.abc import Sequence
from pathlib import Path

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import TokenizerError
from glmkit.position_rows import PositionRows, Span
from glmkit.tokenizer.composed import ComposedTokenizer, Decoding, Marker, Reading
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.inputs import RowLayout, Side
from glmkit.tokenizer.vocabulary_files import decode_vocabulary, parse_json, read_vocabulary

from .common.ice_tokenizer import IMAGE_CODES, VOCABULARY, IceVocabulary, added_tokens, has_images, load_vocabulary
from .common.round_chat import CHAT
from .common.round_tuning import RoundTuning

__all__ = ["CHAT", "TOKENIZER_FILES", "TUNING", "ChatGLMTokenizer", "load_tokenizer"]

TOKENIZER_FILES = (VOCABULARY,)
TUNING = RoundTuning(template=CHAT, limits=Limits(source=1024, target=128), in_source=1, in_target=2)
# What the published class finds in text; [gMASK] and [sMASK] are ordinary text to it.
_IN_TEXT = ("[MASK]", "<sop>", "<eop>", "<pad>", "<unk>")


class ChatGLMTokenizer(ComposedTokenizer):
    """A prompt is followed by [gMASK] <sop>, an answer by <eop>; padding stands on the left.

    `encode(text, specials=True)` reads [MASK], <sop>, <eop>, <pad> and <unk> as ids, with the white space on both sides
    of them, as the published class does. In any text "<n>", "<|tab|>" and "<|blank_2|>" to "<|blank_80|>" are white
    space; they have no other meaning, so that nothing can be smuggled in by them.
    """

    padding_side: Side = "left"
    truncation_side: Side = "right"

    def __init__(self, vocabulary: IceVocabulary) -> None:
        found = {name: vocabulary.id(name) for name in (*_IN_TEXT, "[gMASK]", "<dBLOCK>")}
        pad = found["<pad>"]
        super().__init__(
            vocabulary.model,
            files=vocabulary.files,
            special=SpecialIds(
                pad=pad,
                eos=found["<eop>"],
                cls=None,
                mask=found["[MASK]"],
                smask=None,
                gmask=found["[gMASK]"],
                sop=found["<sop>"],
                eop=found["<eop>"],
                dblock=found["<dBLOCK>"],
                unk=found["<unk>"],
            ),
            names={},
            reading=Reading([Marker(name, found[name], "both") for name in _IN_TEXT]),
            decoding=Decoding(
                hidden=frozenset(found[name] for name in _IN_TEXT), dropped=frozenset((pad,)), clean_up=True
            ),
        )

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """ids [gMASK] <sop>, and with an answer: ids [gMASK] <sop> answer <eop>."""
        special = self.special
        row = [*ids, special.gmask, special.sop]
        return row if pair is None else [*row, *pair, special.eop]

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        """Part A ends before the first <sop>; from there on tokens stand at the row's first [MASK], or [gMASK]."""
        special, row = self.special, list(row)
        prefix = row.index(special.sop) if special.sop in row else len(row)
        mask = special.mask if special.mask in row else special.gmask
        span = Span(prefix, row.index(mask) if mask in row else None)
        return RowLayout(*PositionRows((span,)).at(0, len(row)), prefix)


def load_tokenizer(directory: Path, config: GLMConfig | None) -> ChatGLMTokenizer | None:
    """The tokenizer of a directory, None without `ice_text.model`.

    The first release has 20,000 image codes in front of the text's ids: by the config's vocabulary size and special
    ids, or else by num_image_tokens in tokenizer_config.json. Raises TokenizerError: a damaged file, or the two
    sources contradicting each other.
    """
    folder = Path(directory)
    declared, known = _declared_images(folder), has_images(config)
    if declared is not None and known and declared == 0:
        raise TokenizerError(
            f"{folder}: tokenizer_config.json says num_image_tokens 0, but the model has rows for {IMAGE_CODES} image "
            f"codes",
            step="take all files from one release",
        )
    offset = IMAGE_CODES if known else declared if known is None and declared else 0
    vocabulary = load_vocabulary(folder, offset=offset)
    if vocabulary is None:
        return None
    tokenizer = ChatGLMTokenizer(vocabulary)
    tokenizer.extend(added_tokens(folder, tokenizer, config))
    return tokenizer


def _declared_images(folder: Path) -> int | None:
    """num_image_tokens of tokenizer_config.json, None when it is not there."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    values = parse_json(decode_vocabulary(read_vocabulary(path), str(path)), str(path))
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: holds {type(values).__name__}, not an object", step="copy or download it again")
    count = values.get("num_image_tokens")
    if count is not None and (type(count) is not int or count < 0):
        raise TokenizerError(f"{path}: num_image_tokens is {count!r}; it must be 0 or {IMAGE_CODES}")
    return count

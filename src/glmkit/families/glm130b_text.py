"""Text of GLM-130B. Sources: `THUDM/icetk`, `THUDM/GLM-130B:generate.py`."""

from collections.abc import Sequence
from pathlib import Path

from glmkit.config import GLMConfig, SpecialIds
from glmkit.position_rows import PositionRows, Span
from glmkit.tokenizer.composed import ComposedTokenizer, Decoding, Marker, Reading
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.inputs import RowLayout, Side

from .common.ice_tokenizer import IMAGE_CODES, VOCABULARY, IceVocabulary, added_tokens, has_images, load_vocabulary
from .common.span_tuning import SpanTuning

CHAT = None
TUNING = SpanTuning(limits=Limits(source=608, target=160), closed=False)
TOKENIZER_FILES = (VOCABULARY,)
_MASKS = ("[MASK]", "[sMASK]", "[gMASK]")


class GLM130BTokenizer(ComposedTokenizer):
    """A text with a mask where something is missing, then </s> unless the mask is its end, then <sop>.

    `encode(text, specials=True)` cuts the text at [MASK], [sMASK] and [gMASK]; white space around them stays.
    """

    padding_side: Side = "left"
    truncation_side: Side = "left"

    def __init__(self, vocabulary: IceVocabulary) -> None:
        masks = {name: vocabulary.id(name) for name in _MASKS}
        special = SpecialIds(
            pad=vocabulary.id("<pad>"),
            eos=vocabulary.id("</s>"),
            cls=vocabulary.id("<ENC>"),
            mask=masks["[MASK]"],
            smask=masks["[sMASK]"],
            gmask=masks["[gMASK]"],
            sop=vocabulary.id("<sop>"),
            eop=vocabulary.id("<eop>"),
            dblock=vocabulary.id("<dBLOCK>"),
            unk=vocabulary.id("<unk>"),
        )
        hidden = frozenset(index for index in vars(special).values() if index is not None)
        super().__init__(
            vocabulary.model,
            files=vocabulary.files,
            special=special,
            names={},
            reading=Reading([Marker(name, index) for name, index in masks.items()]),
            decoding=Decoding(hidden=hidden),
        )

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """ids, a [gMASK] when there is no mask, </s> unless a mask is last, <sop>; with an answer that and <eop>."""
        special = self.special
        masks = special.mask_ids()
        row = list(ids)
        if not any(index in masks for index in row):
            row.append(special.gmask)
        if row[-1] not in masks:
            row.append(special.eos)
        row.append(special.sop)
        return row if pair is None else [*row, *pair, special.eop]

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        """Part A ends before <sop>. Behind it positions count on for [gMASK], and stay at the mask for the others."""
        special, row = self.special, list(row)
        prefix = row.index(special.sop) if special.sop in row else len(row)
        chosen = next((mask for mask in (special.mask, special.smask) if mask in row), None)
        span = Span(prefix, None if chosen is None else row.index(chosen))
        return RowLayout(PositionRows((span,)).at(0, len(row))[0], [0] * len(row), prefix)


def load_tokenizer(directory: Path, config: GLMConfig | None) -> GLM130BTokenizer | None:
    """The tokenizer of a directory, None without `ice_text.model`. Raises TokenizerError.

    The file of icetk (130,000 pieces) or that of ChatGLM-6B, which has the same pieces; ids begin at 20,000 unless the
    config is too small for them.
    """
    vocabulary = load_vocabulary(directory, offset=0 if has_images(config) is False else IMAGE_CODES)
    if vocabulary is None:
        return None
    tokenizer = GLM130BTokenizer(vocabulary)
    tokenizer.extend(added_tokens(directory, tokenizer, config))
    return tokenizer

"""The vocabulary of GLM-130B and ChatGLM-6B: `ice_text.model`, special tokens behind its pieces, image codes before.

Sources: `THUDM/icetk:icetk/`, `THUDM/chatglm-6b:tokenization_chatglm.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from glmkit.config import GLMConfig
from glmkit.errors import TokenizerError
from glmkit.tokenizer.added_tokens import AddedTokens, Vocabulary, read_added_tokens
from glmkit.tokenizer.sentencepiece import PieceKind, SentencePieceModel, append_pieces, byte_pieces
from glmkit.tokenizer.vocabulary_files import read_side_files, read_vocabulary
from glmkit.tokenizer.whitespace_pieces import WhitespacePieces, white_space_pieces

VOCABULARY = "ice_text.model"
IMAGE_CODES = 20_000  # ids in front of the text's in GLM-130B and the first ChatGLM-6B
_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
# With image codes the vocabularies have 150,344 ids (150,528 rows), without them 130,344 (130,528 rows).
_FEWEST_WITH_IMAGES = 150_000


@dataclass(frozen=True)
class IceVocabulary:
    """The vocabulary and the files to be saved with it."""

    model: WhitespacePieces
    files: dict[str, bytes]

    def id(self, piece: str) -> int:
        """The id of a piece that every file of this kind has. Raises TokenizerError."""
        index = self.model.find(piece)
        if index is None:
            raise TokenizerError(f"{VOCABULARY} of {self.model.size} pieces has no {piece!r}; is it another model's?")
        return index


def has_images(config: GLMConfig | None) -> bool | None:
    """True when a config's ids begin with image codes; None when there is no config."""
    if config is None:
        return None
    special = config.special
    highest = config.vocab_size if special is None else max(config.vocab_size, special.gmask)
    return highest >= _FEWEST_WITH_IMAGES


def load_vocabulary(directory: Path, *, offset: int) -> IceVocabulary | None:
    """The vocabulary in a directory, None without `ice_text.model`. Raises TokenizerError for a damaged one.

    A file of the 130,000 plain pieces gets the special tokens, the white-space pieces and the bytes behind them.
    """
    path = directory / VOCABULARY
    if not path.is_file():
        return None
    data = read_vocabulary(path)
    pieces = SentencePieceModel(data, source=str(path))
    if pieces.find(_SPECIALS[0]) is None:
        pieces = SentencePieceModel(append_pieces(data, _appended()), source=str(path))
    return IceVocabulary(WhitespacePieces(pieces, offset=offset), {VOCABULARY: data, **read_side_files(directory)})


def added_tokens(directory: Path, vocabulary: Vocabulary, config: GLMConfig | None) -> AddedTokens:
    """The tokens that files beside the vocabulary add to it. Raises TokenizerError."""
    own = (*_SPECIALS, "<unk>", "<s>", "</s>", "<pad>")
    return read_added_tokens(directory, vocabulary, None if config is None else config.vocab_size, published=own)


def _appended() -> list[tuple[str, PieceKind]]:
    controls: list[tuple[str, PieceKind]] = [(name, "control") for name in _SPECIALS]
    blanks: list[tuple[str, PieceKind]] = [(name, "user") for name in white_space_pieces()]
    return controls + blanks + byte_pieces()

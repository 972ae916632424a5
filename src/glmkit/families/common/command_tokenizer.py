"""SentencePiece with command tokens behind it: the tokenizer of ChatGLM2-6B and ChatGLM3-6B, one file for both.

Sources: `THUDM/chatglm2-6b:tokenization_chatglm.py`, `THUDM/chatglm3-6b:tokenization_chatglm.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import TokenizerError
from glmkit.tokenizer.added_tokens import read_added_tokens
from glmkit.tokenizer.bpe_ranks import looks_like_ranks
from glmkit.tokenizer.composed import ComposedTokenizer, Decoding, Marker, Reading
from glmkit.tokenizer.inputs import Side
from glmkit.tokenizer.sentencepiece import SentencePieceModel, SentencePieceRun
from glmkit.tokenizer.vocabulary_files import check_entries, read_vocabulary

TOKENIZER_FILES = ("tokenizer.model",)
COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_PIECES = {65024: 64789}  # of the published vocabulary, by rows of the embedding
_UNK, _BOS, _EOS = 0, 1, 2  # pad is unk; none of the three is ever decoded


class CommandTokenizer(ComposedTokenizer):
    """A `Tokenizer`: every input begins with [gMASK] sop, a pair ends with </s>.

    commands: the tokens behind the vocabulary, in order. named: they decode to their names, and ids behind them to
    nothing; without it they decode to nothing, and such ids are errors. markers: command tokens that
    `encode(..., specials=True)` recognises while `encode_special_tokens` is on; it is off as published, so that
    nothing in a text is special.
    """

    padding_side: Side = "left"
    truncation_side: Side = "right"

    def __init__(
        self,
        model: SentencePieceModel,
        commands: Sequence[str],
        *,
        named: bool = False,
        markers: Sequence[str] = (),
        encode_special_tokens: bool = False,
    ) -> None:
        ids = {name: model.size + number for number, name in enumerate(commands)}
        mask, gmask, smask, sop, eop = (ids[name] for name in COMMANDS)
        super().__init__(
            model,
            files={TOKENIZER_FILES[0]: model.data},
            special=SpecialIds(
                pad=_UNK, eos=_EOS, cls=None, mask=mask, smask=smask, gmask=gmask, sop=sop, eop=eop, unk=_UNK
            ),
            names={index: name for name, index in ids.items()},
            reading=Reading([Marker(name, ids[name]) for name in markers]),
            decoding=Decoding(),
        )
        self.encode_special_tokens = encode_special_tokens
        self._new_run, self._known, self._named = model.run, model.size, named

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        return super().encode(text, specials=specials and self.encode_special_tokens)

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        row = [self.special.gmask, self.special.sop, *ids]
        return row if pair is None else [*row, *pair, _EOS]

    def _runs(self, hidden: frozenset[int]) -> "CommandStream":
        """`hidden` is always empty: as published, no token is registered as special, so none is skipped."""
        names = {_UNK: "", _BOS: "", _EOS: "", **{i: name if self._named else "" for i, name in self._names.items()}}
        return CommandStream(self._new_run(), names, self._known, lenient=self._named)

    def fingerprint(self) -> str:
        flags = f"{super().fingerprint()} {self.encode_special_tokens}"
        return hashlib.sha256(flags.encode()).hexdigest()


class CommandStream:
    """Ids to text. names: the ids that decode to a fixed text; like unknown pieces they stand between two pieces.

    lenient: an id outside the vocabulary gives nothing; a negative one always does. Raises TokenizerError otherwise.
    """

    def __init__(self, run: SentencePieceRun, names: Mapping[int, str], size: int, *, lenient: bool) -> None:
        self._run, self._names, self._size, self._lenient = run, names, size, lenient

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain."""
        out: list[str] = []
        start = 0
        for place, index in enumerate(ids):
            if 0 <= index < self._size and index not in self._names:
                continue
            out += [self._run.feed(ids[start:place]), self._run.literal(self._name(index))]
            start = place + 1
        out.append(self._run.feed(ids[start:]))
        return "".join(out)

    def finish(self) -> str:
        """Give out what was held back, at the end of the ids."""
        return self._run.finish()

    def _name(self, index: int) -> str:
        name = self._names.get(index)
        if name is None and index >= 0 and not self._lenient:
            last = max(self._names)
            raise TokenizerError(f"token id {index} is outside the vocabulary of {last + 1} tokens")
        return name or ""


def load_commands(
    directory: Path,
    config: GLMConfig | None,
    commands: Sequence[str],
    *,
    named: bool = False,
    markers: Sequence[str] = (),
) -> CommandTokenizer | None:
    """The tokenizer in a directory, None without `tokenizer.model`.

    Raises TokenizerError for another kind of file, another number of pieces than a published model's, or added tokens
    that do not fit.
    """
    path = directory / TOKENIZER_FILES[0]
    if not path.is_file():
        return None
    data = read_vocabulary(path)
    if looks_like_ranks(data):
        raise TokenizerError(
            f"{path}: a tiktoken vocabulary, as GLM-4 has it, where a SentencePiece model is expected",
            step="give the tokenizer of this model",
        )
    model = SentencePieceModel(data, source=str(path))
    rows = None if config is None else config.vocab_size
    check_entries(str(path), model.size, rows, _PIECES)
    tokenizer = CommandTokenizer(model, commands, named=named, markers=markers)
    tokenizer.extend(read_added_tokens(directory, tokenizer, rows))
    return tokenizer

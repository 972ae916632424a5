"""Text of GLM: BERT wordpieces, GPT-2 or RoBERTa byte-level BPE, Chinese SentencePiece."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from glmkit.config import GLMConfig
from glmkit.errors import TokenizerError
from glmkit.position_rows import PositionRows
from glmkit.tokenizer.added_tokens import read_added_tokens
from glmkit.tokenizer.byte_bpe import ByteBPE
from glmkit.tokenizer.composed import ComposedTokenizer
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.inputs import RowLayout
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from glmkit.tokenizer.text_model import TextModel
from glmkit.tokenizer.vocabulary_files import check_entries, decode_vocabulary, read_side_files, read_vocabulary
from glmkit.tokenizer.wordpiece import WordPiece

from .common.span_tuning import SpanTuning
from .glm_strings import PUBLISHED, Kind, Style, command_tokens, decoding, special_ids
from .glm_strings import reading as read_rules

CHAT = None
# `PaddlePaddle/PaddleNLP:llm/glm/finetune_generation.py`
TUNING = SpanTuning(limits=Limits(source=608, target=160))
_WORDS, _ENTRIES, _MERGES, _CHINESE = "vocab.txt", "vocab.json", "merges.txt", "cog-pretrain.model"
TOKENIZER_FILES = (_WORDS, _ENTRIES, _MERGES, _CHINESE)
Masks = Literal["none", "own", "shared"]

# Entries of the published vocabularies, by rows of the embedding.
_ROWS: dict[int, dict[Kind, int]] = {
    30592: {"bert": 30522},
    50304: {"gpt2": 50257, "roberta": 50265},
    50048: {"chinese": 50000},
}


class GLMTokenizer(ComposedTokenizer):
    """GLM's text: [CLS] in front, an end token behind, masks where something is missing.

    Two published implementations differ in small things: the training code ("native") and the classes shipped beside
    the weights ("hub"; "hub-4.44" as they behave under that version of transformers).
    """

    truncation_side = "left"

    def __init__(
        self,
        kind: Kind,
        model: TextModel,
        files: dict[str, bytes],
        *,
        reading: Style = "native",
        writing: Style = "hub",
        inputs: Style = "hub",
        masks: Masks | None = None,
    ) -> None:
        """Rules by implementation, and the ids of the task masks.

        reading: which strings `encode(text, specials=True)` knows and which white space they swallow: on the left of
        masks (native), on both sides of special strings (hub), none (hub-4.44). Native reads white space alone as
        nothing. writing: whose `decode`: hub puts spaces around special strings and takes those before punctuation
        away ("a , b" -> "a, b"), native neither. inputs: hub closes BERT's rows with [SEP] and pads RoBERTa's with
        <pad>, where the training code uses the end token. masks: whether [gMASK] and [sMASK] have no ids, their own,
        or (shared) those of the first Chinese training run, where [gMASK] shares the end of a piece's id; None for
        what the released models of this kind have.
        """
        for name, style in (("reading", reading), ("writing", writing), ("inputs", inputs)):
            if style not in get_args(Style):
                raise TokenizerError(f"{name} is {style!r}", step=f"use one of {', '.join(get_args(Style))}")
        masks = masks or ("none" if kind in ("bert", "roberta") else "own")
        commands = command_tokens(
            kind, model, task_masks=masks != "none", decoder_mask=kind == "gpt2", fixed_order=masks != "shared"
        )
        rules = read_rules(kind, model, commands, reading)
        names = {command.id: command.text for command in reversed(commands)}
        if kind == "chinese":
            names[model.size + 5] = "[UNUSED2]"
        self.kind, self.inputs = kind, inputs
        self._options = {"reading": reading, "writing": writing, "inputs": inputs, "masks": masks}
        super().__init__(
            model,
            files=files,
            special=special_ids(kind, model, commands, inputs),
            names=names | {marker.id: marker.text for marker in reversed(rules.markers)},
            reading=rules,
            decoding=decoding(kind, model, commands, writing),
        )

    def with_options(
        self, *, reading: Style | None = None, writing: Style | None = None, inputs: Style | None = None
    ) -> "GLMTokenizer":
        """The same vocabulary under other rules."""
        asked = {"reading": reading, "writing": writing, "inputs": inputs}
        options = self._options | {name: value for name, value in asked.items() if value is not None}
        changed = GLMTokenizer(self.kind, self.model, self.files, **options)  # type: ignore[arg-type]
        changed.extend(self.added)
        return changed

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """[CLS] ids end. Two texts: BERT [CLS] a [SEP] b [SEP], RoBERTa <s> a </s></s> b </s>.

        Raises TokenizerError for a second text where the published class takes one.
        """
        special = self.special
        assert special.cls is not None
        assert special.sep is not None
        hub = self.inputs != "native"
        end = special.sep if hub and self.kind == "bert" else special.eos
        if pair is None:
            return [special.cls, *ids, end]
        if not hub or self.kind not in ("bert", "roberta"):
            raise TokenizerError("this tokenizer builds inputs of one text only", step="join the two texts into one")
        between = [end] if self.kind == "bert" else [end, end]
        return [special.cls, *ids, *between, *pair, end]

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        """Positions count on, and all of part A sees all of part A."""
        return RowLayout(*PositionRows().at(0, len(row)), len(row))


def load_tokenizer(
    directory: Path,
    config: GLMConfig | None,
    *,
    kind: Kind | None = None,
    reading: Style = "native",
    writing: Style = "hub",
    inputs: Style = "hub",
) -> GLMTokenizer | None:
    """The tokenizer of a directory, None when it has no vocabulary of these kinds.

    Found are vocab.txt, vocab.json with merges.txt, and cog-pretrain.model, the first three also with a name in front
    (bert-base-uncased-vocab.txt). With several kinds in one directory the config's vocabulary size decides, or `kind`.
    Raises TokenizerError: a damaged file, a choice that cannot be made, a config of another published size.
    """
    folder = Path(directory)
    found = [entry for entry in _find(folder) if kind in (None, entry.kind)]
    if not found:
        return None
    rows = 0 if config is None else config.vocab_size
    if rows in _ROWS:
        fitting = [entry for entry in found if entry.kind in _ROWS[rows]]
        if not fitting:
            raise TokenizerError(
                f"{folder} holds a vocabulary of the kind {found[0].kind} ({found[0].names}), but a model of {rows} "
                f"rows reads {' or '.join(_ROWS[rows])}",
                step="take all files from one model",
            )
        found = fitting
    if any(entry.files != found[0].files for entry in found):
        names = "; ".join(entry.names for entry in found)
        raise TokenizerError(
            f"{folder} holds several vocabularies ({names})", step="keep one model's, or say which kind="
        )
    chosen = found[0]
    model = chosen.model()
    entries = {size: kinds[chosen.kind] for size, kinds in _ROWS.items() if chosen.kind in kinds}
    check_entries(str(chosen.paths[0]), model.size, rows, entries)
    tokenizer = GLMTokenizer(
        chosen.kind,
        model,
        {**chosen.files, **read_side_files(folder)},
        reading=reading,
        writing=writing,
        inputs=inputs,
        masks=_masks(chosen.kind, model, config),
    )
    tokenizer.extend(read_added_tokens(folder, tokenizer, rows or None, published=PUBLISHED))
    return tokenizer


@dataclass(frozen=True)
class _Found:
    """One vocabulary of a directory: its paths, and its bytes under the published names."""

    kind: Kind
    paths: tuple[Path, ...]
    files: dict[str, bytes]

    @property
    def names(self) -> str:
        return ", ".join(path.name for path in self.paths)

    def model(self) -> TextModel:
        names = [str(path) for path in self.paths]
        if self.kind == "chinese":
            return SentencePieceModel(self.files[_CHINESE], source=names[0])
        texts = [decode_vocabulary(data, name) for data, name in zip(self.files.values(), names, strict=True)]
        if self.kind == "bert":
            return WordPiece.from_text(texts[0], source=names[0])
        return ByteBPE.from_text(*texts, source=names[0], merges_source=names[1])


def _find(folder: Path) -> list[_Found]:
    found: list[_Found] = []
    path = folder / _CHINESE
    if path.is_file():
        found.append(_Found("chinese", (path,), {_CHINESE: read_vocabulary(path)}))
    for path in _named(folder, _WORDS):
        found.append(_Found("bert", (path,), {_WORDS: read_vocabulary(path)}))
    for path in _named(folder, _ENTRIES):
        merges = path.with_name(path.name.removesuffix(_ENTRIES) + _MERGES)
        files = {_ENTRIES: read_vocabulary(path), _MERGES: read_vocabulary(merges)}
        found.append(_Found("roberta" if b'"<mask>"' in files[_ENTRIES] else "gpt2", (path, merges), files))
    return found


def _named(folder: Path, name: str) -> list[Path]:
    """The file of this name, else files that end in it behind a hyphen."""
    exact = folder / name
    return [exact] if exact.is_file() else sorted(path for path in folder.glob(f"*-{name}") if path.is_file())


def _masks(kind: Kind, model: TextModel, config: GLMConfig | None) -> Masks | None:
    """Read the task masks off the config's special ids; None when they say nothing."""
    special = None if config is None else config.special
    if special is None:
        return None
    if kind == "chinese":
        return "shared" if special.gmask == special.eop else None
    if kind in ("bert", "roberta"):
        return "own" if special.gmask not in (special.mask, special.sop) and special.gmask >= model.size else None
    return None

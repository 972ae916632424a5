"""GLM's special strings: their ids, how they are read from text, how they are written.

Sources: `THUDM/GLM:data_utils/tokenization.py` ("native"), `tokenization_glm.py` beside the published weights ("hub").
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError
from glmkit.tokenizer.byte_bpe import ByteBPE
from glmkit.tokenizer.byte_tokens import ByteRun
from glmkit.tokenizer.composed import Decoding, Marker, Reading, Strip
from glmkit.tokenizer.text_model import TextModel
from glmkit.tokenizer.wordpiece import WordPiece, WordPieceRun

Kind = Literal["bert", "gpt2", "roberta", "chinese"]
# native: the training code. hub: the classes beside the weights, run with transformers up to 4.30; hub-4.44: the same
# classes with that version, which treats the white space around special strings differently.
Style = Literal["native", "hub", "hub-4.44"]

EOS, SOP, EOP = "<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>"
_ROBERTA_ENTRIES = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
# Names that the releases give ids to, each its own; nobody else adds them.
_NAMED = "[CLS] [SEP] [PAD] [UNK] [MASK] [gMASK] [sMASK] [dBLOCK] [UNUSED1] [UNUSED2]"
PUBLISHED = frozenset((EOS, SOP, EOP, *_NAMED.split(), *_ROBERTA_ENTRIES))
# What the shipped classes leave out of decoded text on request.
_DECLARED = {
    "bert": {"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", SOP, EOP},
    "gpt2": {EOS, "[SEP]", "[CLS]", "[MASK]"},
}


@dataclass(frozen=True)
class Command:
    """A special string of the training code. lstrip: it swallows the white space on its left."""

    name: str
    text: str
    id: int
    lstrip: bool = False


def command_tokens(
    kind: Kind, model: TextModel, *, task_masks: bool = False, decoder_mask: bool = False, fixed_order: bool = False
) -> list[Command]:
    """The training code's special strings with block symbols; its options add [sMASK], [gMASK] and [dBLOCK].

    fixed_order: the numbering of the released Chinese models, where [gMASK] does not share the id of the end of a
    piece. Raises TokenizerError when the vocabulary lacks an entry that must be its own.
    """
    size = model.size
    if kind == "bert":
        names = {"pad": "[PAD]", "ENC": "[CLS]", "MASK": "[MASK]", "unk": "[UNK]", "sep": "[SEP]", "eos": "[PAD]"}
        found = [Command(name, text, own_entry(model, text)) for name, text in names.items()]
        found += [Command("sop", SOP, size), Command("eop", EOP, size + 1)]
        free = size + 2
    elif kind == "roberta":
        end = own_entry(model, "</s>")
        found = [
            Command("pad", EOS, end),
            Command("eos", EOS, end),
            Command("sep", "[SEP]", end),
            Command("ENC", "[CLS]", own_entry(model, "<s>")),
            Command("MASK", "[MASK]", own_entry(model, "<mask>"), True),
            Command("unk", "[UNK]", own_entry(model, "<unk>")),
            Command("sop", SOP, size),
            Command("eop", EOP, size + 1),
        ]
        free = size + 2
    elif kind == "gpt2":
        end = own_entry(model, EOS)
        found = [
            Command("pad", EOS, end),
            Command("eos", EOS, end),
            Command("sop", SOP, size),
            Command("eop", EOP, size + 1),
            Command("ENC", "[CLS]", size + 2),
            Command("MASK", "[MASK]", size + 3, True),
            Command("sep", "[SEP]", size + 4),
            Command("unk", "[UNK]", size + 5),
        ]
        free = size + 6
    else:  # one id is left out in front of the start of a piece
        found = [
            Command("pad", EOS, size),
            Command("eos", EOS, size),
            Command("sep", "[SEP]", size + 1),
            Command("ENC", "[CLS]", size + 2),
            Command("MASK", "[MASK]", size + 3, True),
            Command("unk", "[UNK]", size + 4),
            Command("sop", SOP, size + 6),
            Command("eop", EOP, size + 7),
        ]
        free = size + (8 if fixed_order else 7)
    if task_masks:
        masks = ["sMASK", "gMASK"] if kind == "chinese" and fixed_order else ["gMASK", "sMASK"]
        found += [Command(name, f"[{name}]", free + i, kind != "bert") for i, name in enumerate(masks)]
        free += 2
    if decoder_mask:
        found.append(Command("dBLOCK", "[dBLOCK]", free))
    return found


def own_entry(model: TextModel, entry: str) -> int:
    """The id of an entry that the vocabulary must have. Raises TokenizerError when it has none."""
    index = model.find(entry)
    if index is None:
        raise TokenizerError(f"the vocabulary of {model.size} entries has no {entry!r}; is it another model's?")
    return index


def special_ids(kind: Kind, model: TextModel, commands: list[Command], inputs: Style) -> SpecialIds:
    """The ids by role. Models without task masks use [MASK] where a [gMASK] is asked for."""
    ids = {command.name: command.id for command in commands}
    pad = own_entry(model, "<pad>") if kind == "roberta" and inputs != "native" else ids["pad"]
    mask = ids["MASK"]
    return SpecialIds(
        pad=pad,
        eos=ids["eos"],
        cls=ids["ENC"],
        mask=mask,
        smask=ids.get("sMASK"),
        gmask=ids.get("gMASK", mask),
        sop=ids["sop"],
        eop=ids["eop"],
        dblock=ids.get("dBLOCK"),
        sep=ids["sep"],
        unk=ids["unk"],
    )


def reading(kind: Kind, model: TextModel, commands: list[Command], style: Style) -> Reading:
    """Rules of reading text: its special strings, the white space that they swallow, and what is done before."""
    found = _markers(kind, model, commands, style)
    if style == "native":
        return Reading(found, drop_white=True)
    if kind != "bert":
        return Reading(found)
    names = "|".join(re.escape(marker.text) for marker in found)
    return Reading(found, prepare=partial(_lowered, re.compile(f"({names})")))


def _lowered(names: re.Pattern[str], text: str) -> str:
    """First step of the shipped BERT class: all but special strings in lower case, letter by letter (no final sigma).

    So an upper-case "<|STARTOFPIECE|>" becomes a special string here.
    """
    parts = names.split(text)
    parts[0::2] = [part.replace("Σ", "σ").lower() for part in parts[0::2]]
    return "".join(parts)


def _markers(kind: Kind, model: TextModel, commands: list[Command], style: Style) -> list[Marker]:
    if style == "native":
        return [Marker(command.text, command.id, "left" if command.lstrip else "none") for command in commands]
    strip: Strip = "both" if style == "hub" else "none"
    if kind == "roberta":
        kept = [
            Marker(entry, own_entry(model, entry), "left" if entry == "<mask>" else "none")
            for entry in _ROBERTA_ENTRIES
        ]
        return kept + [Marker(c.text, c.id, strip) for c in commands if c.name in ("sop", "eop")]
    found = {c.text: Marker(c.text, c.id, "none" if kind == "gpt2" and c.text == EOS else strip) for c in commands}
    if kind == "chinese":  # where [UNK] is the vocabulary's own unknown entry
        size = model.size
        found["[UNK]"] = Marker("[UNK]", 0, strip)
        found |= {text: Marker(text, size + 4 + i, strip) for i, text in enumerate(("[UNUSED1]", "[UNUSED2]"))}
    return list(found.values())


def decoding(kind: Kind, model: TextModel, commands: list[Command], style: Style) -> Decoding:
    """Rules of writing ids as text."""
    names = {command.id: command.text for command in commands}  # of several names of one id the last
    if style == "native":
        hidden = frozenset(names)
        if isinstance(model, WordPiece):  # there special strings are words like others
            entries = [names[i] if i in names else model.token(i) for i in range(max(names) + 1)]
            return Decoding(hidden=hidden, new_run=partial(WordPieceRun, entries))
        return Decoding(names, hidden=hidden)
    appended = {index: text for index, text in names.items() if index >= model.size}
    if kind == "chinese":
        appended |= {model.size + 4: "[UNUSED1]", model.size + 5: "[UNUSED2]"}
        return Decoding(appended, " ", frozenset(appended) | {0}, clean_up=True)
    if kind == "roberta":
        hidden = frozenset(own_entry(model, entry) for entry in _ROBERTA_ENTRIES)
    else:
        hidden = frozenset(command.id for command in commands if command.text in _DECLARED[kind])
    if style == "hub-4.44" and isinstance(model, ByteBPE):  # declared strings are part of the runs there
        entries_of_run = model.token_bytes + [names[i].encode() for i in range(model.size, max(names) + 1)]
        apart = {index: text for index, text in appended.items() if index not in hidden}
        return Decoding(apart, " ", hidden, clean_up=True, new_run=partial(ByteRun, entries_of_run))
    return Decoding(appended, " ", hidden, clean_up=True)

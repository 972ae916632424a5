"""Texts of rows: a value of a field as text, blank ones, placeholders, and end words of other models behind answers."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from glmkit.data.json_files import WHOLE, WrittenFloat
from glmkit.data.rows import BadRow, check_text, describe, unusable_json
from glmkit.errors import DataError
from glmkit.families.family import Family
from glmkit.small_files import bound_depth
from glmkit.tokenizer.chat_template import ChatTemplate
from glmkit.tokenizer.dialogue import is_blank
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.protocol import Tokenizer

# Words that end a text in the training data of other models and of this one; at the end of an answer they are no text.
_END = (
    r"(?:<\|(?:endoftext|im_end|end_of_text|end_of_turn|eot_id|end|eos|EOT|return|endofpiece)\|>|</s>|<end_of_turn>|<eop>|<eos>|"
    "\\[EOS\\]|<\uff5cend\u2581of\u2581sentence\uff5c>)"
)
_ENDS = re.compile(rf"\s*(?:{_END}\s*)+\Z")
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")

Blank = Callable[[str], bool]


@dataclass(frozen=True)
class Reader:
    """The model for which rows are read.

    chat: its form of conversations and calls, None for one that was never taught to chat. blank: tells whether nothing
    of a text is left to it. reserved: words that are tokens of their own to it. title: of the model's family, "" where
    rows are read for no model: calls then stay JSON.
    """

    chat: ChatTemplate | None = None
    blank: Blank = is_blank
    reserved: Sequence[str] = ()
    title: str = ""

    @classmethod
    def of(cls, family: Family, tokenizer: Tokenizer) -> "Reader":
        """The reader for a family and a tokenizer."""
        special = {index for index in vars(tokenizer.special).values() if isinstance(index, int)}
        stops: tuple[int, ...] = ()
        if family.chat is not None and isinstance(tokenizer, InputTokenizer):
            stops = family.chat.stop_ids(tokenizer)
        words = {tokenizer.id_to_token(index) for index in (*special, *stops)}
        reserved = sorted(word for word in words if re.fullmatch(r"[<\[].+[>\]]", word))
        return cls(family.chat, partial(is_blank, tokenizer=tokenizer), tuple(reserved), family.title)


def written(value: object, field: str) -> str:
    """A value as the text that it has in the file; "" for null. Raises DataError naming the field.

    Whole numbers are texts, and so are numbers of JSON with a fraction: as they were written, which a column of floats
    in a table does not tell.
    """
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    if isinstance(value, WrittenFloat):
        return value.text
    if not isinstance(value, str):
        raise DataError(
            f"field {field!r} is {describe(value)}, not text{_advice(value)}", param=field, code="wrong_type"
        )
    checked = check_text(value, "", field)
    if isinstance(checked, BadRow):
        raise DataError(checked.message, param=field, code=checked.reason)
    return checked


def parse_json(text: str, field: str) -> object:
    """The value of a field that is JSON as text, read as the file's own JSON. Raises DataError naming the field."""
    try:
        value: object = WHOLE.decode(text)
        bound_depth(value)
    except json.JSONDecodeError as error:
        what = f"field {field!r} holds broken JSON at character {error.pos}: {error.msg}"
        raise DataError(what, param=field, code="broken_json") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"field {field!r}: {unusable_json(error)}", param=field, code="unusable_json") from None
    return value


def plain_json(value: object, field: str) -> object:
    """A value of tools and calls without the keys of null in objects, at every depth: tables fill rows with them.

    Raises DataError for what JSON or Unicode has no form for: NaN, infinite numbers, bytes, half of a surrogate pair.
    """
    if isinstance(value, Mapping):
        return {written(str(key), field): plain_json(item, field) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain_json(item, field) for item in value]
    if isinstance(value, WrittenFloat) and value.text == "-0":
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"field {field!r} holds {value!r}, which is no number of JSON", param=field, code="wrong_value")
    return value if value is None or isinstance(value, bool | int | float) else written(value, field)


def without_end_words(answer: str) -> tuple[str, bool]:
    """An answer without the end words of models at its end, and the white space around them; True if there were any."""
    found = _ENDS.search(answer) if answer.rstrip().endswith((">", "]")) else None
    if found is not None and "</s>" in found[0] and "<s>" in answer:  # what is struck out in a text of HTML
        found = None
    return (answer[: found.start()], True) if found else (answer, False)


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with `{{name}}` replaced by the value of that name; names without one stay."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text) if values and "{{" in text else text


def _advice(value: object) -> str:
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return "; several answers, better and worse, make a preference row, which fine-tuning does not learn from"
    if isinstance(value, float):
        return "; how it was written is not known; store it as text"
    return ""

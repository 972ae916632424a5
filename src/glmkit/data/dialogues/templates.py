"""Texts of questions and answers made from the fields of a row: published wordings by name, own ones from YAML."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

from glmkit.errors import ConfigError, DataError, did_you_mean
from glmkit.objective.counter_rng import CounterRng
from glmkit.small_files import parse_yaml, read_small
from glmkit.tokenizer.inputs import Side

_NAME = re.compile(r"\{(\w+)\}|\{\{|\}\}")
_TEMPLATE_STREAM = 0x7E  # of the numbers that choose among several templates
_MARK = "\0"  # stands for the text of a field
NO_TEMPLATE = "none"  # for texts that stay as they are


@dataclass(frozen=True)
class TextTemplate:
    """The wording of a question and its answer.

    prompt, answer, system: pieces; `{field}` is the text of a field, `{{` a brace. A piece whose fields are all empty
    is left out. cut: the side of the question that is given up where it does not fit. needs: a piece is kept only where
    one of its fields holds this word (a published mistake, by name only).
    """

    name: str
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    system: tuple[str, ...] = ()
    cut: Side = "right"
    needs: str = ""

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields in it."""
        return frozenset(name for piece in (*self.prompt, *self.answer, *self.system) for name in _fields(piece))

    def render(self, fields: Mapping[str, str]) -> tuple[str, str, str]:
        """Question, answer and system text."""
        asked = self._joined(self.prompt, fields, self.needs)
        return asked, self._joined(self.answer, fields), self._joined(self.system, fields)

    def question(self, text: str) -> str | None:
        """The question of a row whose first field has this text, and whose other fields are empty.

        A text that is worded already stays. None for another one where the first field never stands alone.
        """
        if (worded := self.worded(text)) is not None:
            return worded
        return self._joined(self.prompt, {self._first[0]: text}, self.needs) if len(self._first) == 1 else None

    def worded(self, text: str) -> str | None:
        """A text that has all words around its first field and those beside it, ended as they end; else None.

        Only white space may be wrong at its end. None, too, where no words stand there.
        """
        first, *middle = self._words
        last = middle.pop() if middle else ""
        if not text.endswith(last):
            text = text.rstrip() + last[len(last.rstrip()) :]
        end = len(text) - len(last)
        if not self.has_words or not text.startswith(first) or not text.endswith(last):
            return None
        place = len(first)
        for words in middle:
            place = text.find(words, place, end) + len(words)
            if place < len(words):
                return None
        return text if place <= end else None

    @property
    def has_words(self) -> bool:
        """True where words stand around the first field or beside it, so that a text alone is no question."""
        return any(self._words)

    @cached_property
    def _first(self) -> tuple[str, ...]:
        """The first field of the question, and those that share a piece with it."""
        first = next((name for piece in self.prompt for name in _fields(piece)), None)
        return tuple(dict.fromkeys(name for piece in self.prompt if first in _fields(piece) for name in _fields(piece)))

    @cached_property
    def _words(self) -> tuple[str, ...]:
        """The texts before, between and behind these fields."""
        return tuple(self._joined(self.prompt, dict.fromkeys(self._first, _MARK)).split(_MARK))

    @staticmethod
    def _joined(pieces: Sequence[str], fields: Mapping[str, str], needs: str = "") -> str:
        kept = []
        for piece in pieces:
            texts = [fields.get(name, "") for name in _fields(piece)]
            if not texts or any(text and (piece is pieces[0] or needs in text) for text in texts):
                kept.append(_filled(piece, fields))
        joined = "".join(kept)
        return joined.lstrip("\n") if kept and kept[0] != _filled(pieces[0], fields) else joined


@lru_cache(maxsize=1024)
def _fields(piece: str) -> tuple[str, ...]:
    return tuple(found[1] for found in _NAME.finditer(piece) if found[1])


def _filled(piece: str, fields: Mapping[str, str]) -> str:
    return _NAME.sub(lambda found: fields.get(found[1], "") if found[1] else found[0][0], piece)


TEMPLATES = {
    template.name: template
    for template in (
        TextTemplate("instruction", ("{instruction}", "\n{input}"), ("{output}",)),
        TextTemplate("belle", ("{instruction}", "{input}"), ("{output}",)),
        TextTemplate("belle_reference", ("{instruction}", "{input}"), ("{output}",), needs="input"),
        # `mymusise/ChatGLM-Tuning:cover_alpaca2jsonl.py`
        TextTemplate(
            "chatglm_tuning",
            ("Instruction: {instruction}\n", "Input: {input}\n", "Answer: "),
            ("{output}",),
        ),
        # `PaddlePaddle/PaddleNLP:llm/glm/data.py`: the answer is known and its question is asked for.
        TextTemplate(
            "dureader_qg",
            ("答案：{answer}，上下文：{context}",),
            ("在已知答案的前提下，问题：{question}",),
        ),
        # What is asked stands at the end of these two; in the others it stands at the beginning.
        TextTemplate("qa", ("{context}", "\n{question}"), ("{answer}",), cut="left"),
        TextTemplate("pair", ("{prompt}",), ("{response}",), cut="left"),
    )
}


def lasting_name(template: str) -> str:
    """A template's name, or the absolute path of its file."""
    return template if template in TEMPLATES else os.path.abspath(template)


def find_templates(names: Sequence[str], param: str = "data.template") -> tuple[TextTemplate, ...]:
    """Templates by name, or from YAML files with a list of {prompt, answer[, system, name, cut]}.

    param: the option that names them. Raises ConfigError for an unknown name and a file that holds something else.
    """
    found: list[TextTemplate] = []
    for name in names:
        if name in TEMPLATES:
            found.append(TEMPLATES[name])
        elif name.endswith((".yaml", ".yml")):
            try:
                found += _read(Path(name))
            except ConfigError as error:
                error.param = param
                raise
        else:
            raise ConfigError(
                f"{param} is {name!r}, which is no template and no .yaml file",
                step=did_you_mean(name, TEMPLATES),
                param=param,
            )
    return tuple(found)


def plain_templates(templates: Sequence[TextTemplate]) -> list[dict[str, object]]:
    """Templates as plain values for a record: published ones by name, the words of others."""
    return [
        {"name": one.name}
        if TEMPLATES.get(one.name) == one
        else {
            "name": one.name,
            "prompt": [*one.prompt],
            "answer": [*one.answer],
            "system": [*one.system],
            "cut": one.cut,
        }
        for one in templates
    ]


def recorded_templates(values: Sequence[Mapping[str, object]], where: str) -> tuple[TextTemplate, ...]:
    """Read what `plain_templates` made. Raises ConfigError for what is no template."""
    return tuple(
        find_templates([str(value["name"])])[0] if value.keys() == {"name"} else _of_item(value, where, "template")
        for value in values
    )


def choose(templates: Sequence[TextTemplate], seed: int, index: int) -> TextTemplate:
    """The template of row `index`, a function of seed and index alone."""
    if len(templates) == 1:
        return templates[0]
    return templates[CounterRng(seed, index, _TEMPLATE_STREAM).randrange(len(templates))]


def check_fields(template: TextTemplate, fields: Mapping[str, str]) -> None:
    """Raise DataError where a row lacks all fields of the question or of the answer of a template."""
    for part, pieces in (("question", template.prompt), ("answer", template.answer)):
        names = [name for piece in pieces for name in _fields(piece)]
        if names and not any(name in fields for name in names):
            raise DataError(
                f"the {part} of template {template.name!r} is made from {', '.join(names)}; the row has none of them",
                param=names[0],
                code="missing_field",
            )


def _read(path: Path) -> list[TextTemplate]:
    try:
        value = parse_yaml(read_small(path, ConfigError), str(path), ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of templates", param="data.template") from None
    items = value.get("templates", [value]) if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise ConfigError(f"{path}: holds no list of templates", step="see docs/finetuning_data.md")
    return [_of_item(item, f"{path}: template {number}", path.stem) for number, item in enumerate(items, start=1)]


def _of_item(item: object, where: str, stem: str) -> TextTemplate:
    if not isinstance(item, Mapping):
        raise ConfigError(f"{where} is no mapping", step="give prompt and answer")
    known = ("name", "prompt", "answer", "system", "cut")
    for key in item:
        if key not in known:
            raise ConfigError(f"{where} has the key {key!r}", step=did_you_mean(key, known), param="data.template")
    prompt, answer, system = (_pieces(item.get(key), f"{where}: {key}") for key in ("prompt", "answer", "system"))
    cut = item.get("cut", "right")
    if not prompt or not answer or cut not in get_args(Side):
        raise ConfigError(f"{where} needs prompt and answer, and as cut left or right", param="data.template")
    return TextTemplate(str(item.get("name", f"{stem} {where.rpartition(' ')[2]}")), prompt, answer, system, cut)


def _pieces(value: object, where: str) -> tuple[str, ...]:
    pieces = [] if value is None else value if isinstance(value, list) else [value]
    for piece in pieces:
        if not isinstance(piece, str):
            raise ConfigError(f"{where} is no text and no list of texts", param="data.template")
        if re.search(r"[{}]", _NAME.sub("", piece)):
            raise ConfigError(
                f"{where}: a brace stands alone in {piece!r}",
                step="write {field} for the text of a field, {{ and }} for braces",
                param="data.template",
            )
    return tuple(pieces)

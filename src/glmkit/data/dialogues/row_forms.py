"""Rows with one question and one answer: which fields they are in, by the form of the row or by the user's names."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields

from glmkit.data.rows import describe
from glmkit.errors import DataError, names_text

from .conversations import CONVERSATIONS

# Fields of rows that say nothing about the text: they are not reported as unused.
_LABELS = frozenset(("id", "idx", "index", "guid", "uid", "__index_level_0__"))


@dataclass(frozen=True)
class Columns:
    """Names of the columns or fields, where the user gives them."""

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    system: str | None = None
    messages: str | None = None
    tools: str | None = None

    def given(self) -> dict[str, str]:
        """Those that are given, by their part."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}


@dataclass(frozen=True)
class Form:
    """A published kind of row.

    fields: the template's names -> the names that rows have for it, the first present one is read. A row is of this
    form if it has the `required` ones. template: the wording without another choice.
    """

    kind: str
    required: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    template: str
    history: tuple[str, ...] = ()
    system: tuple[str, ...] = ()


def _pair(prompt: str, response: str, kind: str = "") -> Form:
    columns = {"prompt": (prompt,), "response": (response,), prompt: (prompt,), response: (response,)}
    kind = kind or f"{prompt}/{response}"
    return Form(kind, (prompt, response), columns, "pair", ("history",), ("system",))


# In the order in which they are tried.
FORMS = (
    Form(
        "instruction",
        ("instruction", "output"),
        {"instruction": ("instruction",), "input": ("input",), "output": ("output",)},
        "instruction",
        ("history",),
        ("system", "system_prompt"),
    ),
    Form(
        "instruction",
        ("instruction", "response"),
        {"instruction": ("instruction",), "input": ("input", "context"), "output": ("response",)},
        "instruction",
        ("history",),
        ("system", "system_prompt"),
    ),
    Form(
        "context/answer/question",
        ("context", "answer", "question"),
        {"context": ("context",), "answer": ("answer",), "question": ("question",)},
        "dureader_qg",
    ),
    Form(
        "source/title/target",
        ("source", "title", "target"),
        {"context": ("source",), "answer": ("title",), "question": ("target",)},
        "dureader_qg",
    ),
    _pair("prompt", "response"),
    _pair("prompt", "completion"),
    _pair("query", "response"),
    _pair("question", "response"),
    _pair("content", "summary", "content/summary (AdvertiseGen)"),
    _pair("context", "target", "context/target (ChatGLM-Tuning)"),
    _pair("source", "target"),
    _pair("src", "tgt"),
    _pair("input", "output"),
    _pair("input", "target"),
    _pair("question", "answer"),
    _pair("problem", "solution"),
    _pair("dialogue", "summary"),
    _pair("document", "summary"),
    _pair("article", "highlights"),
    _pair("text", "summary"),
)


@dataclass(frozen=True)
class Single:
    """A row with one question: the names of its fields, by the names that templates know."""

    kind: str
    template: str
    names: Mapping[str, str]
    history: str | None
    system: str | None

    def used(self, fields: Iterable[str]) -> frozenset[str]:
        """Names of the row's fields that are read for these of a template."""
        parts = (self.names[name] for name in fields if name in self.names)
        return frozenset((*parts, *(name for name in (self.history, self.system) if name)))


def recognised(row: Mapping[str, object], columns: Columns, fields: AbstractSet[str] = frozenset()) -> Single:
    """The form of a row, by the columns that are given, else by the fields that it has.

    fields: of the user's own template, which a row of no known form may have. Raises DataError for a row that lacks the
    given column of the question or the answer, and for what is not known.
    """
    given = columns.given()
    check_columns(row, columns, ("prompt", "response"))
    own = {str(name): str(name) for name in row}
    if "prompt" in given or "response" in given:
        return _by_columns(own, columns)
    if (form := _form_of(row)) is not None:
        names = {part: found for part, known in form.fields.items() if (found := _first(row, known))}
        history, system = _first(row, form.history), _first(row, form.system)
        return Single(form.kind, form.template, own | names, columns.history or history, columns.system or system)
    if fields & own.keys():
        return Single("of the template", "", own, columns.history, columns.system)
    nearest = max(FORMS, key=lambda form: sum(name in row for name in form.required))
    lacking = [name for name in nearest.required if name not in row]
    near = _near(row)
    if len(lacking) == 1 and len(nearest.required) > 1:
        raise missing(row, lacking[0], f"no field {lacking[0]!r}, which rows of the form {nearest.kind} have", near)
    raise DataError(
        f"the row has the fields {names_text(map(str, row), 12)}: no form that is known",
        step=near or "name the columns with --prompt_column and --response_column",
        code="unknown_form",
    )


def is_single(row: Mapping[str, object]) -> bool:
    """True for a row that has the fields of a form with one question, and texts in them."""
    return any(_is_of(row, form) and _says(row, form) for form in FORMS)


def _form_of(row: Mapping[str, object]) -> Form | None:
    """The form of a row: the first one that has texts in it; tables fill the fields of other forms with null."""
    known = [form for form in FORMS if _is_of(row, form)]
    return next((form for form in known if _says(row, form)), known[0] if known else None)


def _is_of(row: Mapping[str, object], form: Form) -> bool:
    return all(_first(row, form.fields.get(name, (name,))) for name in form.required)


def _says(row: Mapping[str, object], form: Form) -> bool:
    """True where the answer is not null, nor all that is asked."""
    answer = form.required[-1]
    others = {name for names in form.fields.values() for name in names} - {answer}
    return row.get(answer) is not None and any(row.get(name) is not None for name in others)


def check_columns(row: Mapping[str, object], columns: Columns, needed: Sequence[str]) -> None:
    """Raise DataError for a row that lacks a needed column of those that are given."""
    for part, name in columns.given().items():
        if part in needed and name not in row:
            raise missing(row, name, f"the {part} column is {name!r}")


def _by_columns(own: Mapping[str, str], columns: Columns) -> Single:
    prompt, response = columns.prompt, columns.response
    if prompt is None or response is None:
        lacking = "prompt_column" if prompt is None else "response_column"
        raise DataError(f"one of the two columns is given, {lacking} is not", step=f"give --{lacking}", param=lacking)
    names = {"prompt": prompt, "instruction": prompt, "response": response, "output": response}
    query = {"input": columns.query} if columns.query is not None else {}
    rest = {name: value for name, value in own.items() if columns.query is not None or name != "input"}
    template = "pair" if columns.query is None else "instruction"
    return Single(f"{prompt}/{response}", template, rest | names | query, columns.history, columns.system)


def missing(row: Mapping[str, object], name: str, what: str, step: str | None = None) -> DataError:
    """The error for a field that a row lacks."""
    found = names_text(map(str, row), 12) or "no fields"
    return DataError(f"{what}; the row has {found}", step=step, param=name, code="missing_field")


def _near(row: Mapping[str, object]) -> str | None:
    """Advice on a field that would be known in lower case, without the blanks around it."""
    known = {other for form in FORMS for names in (form.required, *form.fields.values()) for other in names}
    known.update(CONVERSATIONS)
    near = {str(name): str(name).strip().lower() for name in row}
    return next((f"rename {name!r} to {plain!r}" for name, plain in near.items() if plain in known - {name}), None)


def check_preference(row: Mapping[str, object]) -> None:
    """Raise DataError for a row of better and worse answers, which must not be learned from as it is."""
    if row.get("chosen") is not None and row.get("rejected") is not None:
        what, field = "chosen and rejected answers", "rejected"
    elif isinstance(row.get("label"), bool) and any(name in row for name in ("messages", "completion")):
        what, field = f"an answer with the judgement label {describe(row['label'])}", "label"
    else:
        return
    raise DataError(
        f"a preference row: {what}, which fine-tuning does not learn from",
        step="keep the good answers as rows of their own",
        param=field,
        code="preference_row",
    )


def unused(row: Mapping[str, object], used: Sequence[str] | AbstractSet[str]) -> list[str]:
    """Non-empty fields that are not read, without numbers of rows."""
    return [
        str(name)
        for name, value in row.items()
        if name not in used and str(name) not in _LABELS and value not in (None, "", [], {})
    ]


def _first(row: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The first name with a value that is not null, else the first that is there."""
    there = [name for name in names if name in row]
    return next((name for name in there if row[name] is not None), there[0] if there else None)

"""The documents are true: every fenced snippet is run or checked, every path and verb they name exists.

Languages of fences: `sh` and `python` are run, `yaml` is read as a recipe, `text` is output and trees. Any other
language, or none, fails. HTML comments on the lines right before a fence change how it is treated:

    <!-- with pretrain: --max_steps 2 -->   append these options to that verb's commands, to make them short
    <!-- not run: the reason -->            check names and options only

The snippets of one document run in order in one directory and share their Python names.
"""

import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import VERBS, main
from glmkit.config import GLMConfig, SpecialIds
from glmkit.families.family import preset
from glmkit.model import GLM, init_weights
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.finetuning_recipes import FINETUNING
from glmkit.train.recipe_config import TrainConfig
from support.shared import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMENT = re.compile(r"<!-- (with [a-z]+|ends with|not run): (.+) -->")
LANGUAGES = {"sh", "python", "yaml", "text"}
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Snippet:
    """One fence: `line` of its first line, `language`, `body`, and what the comments before it asked for."""

    line: int
    language: str
    body: str
    orders: dict[str, str]  # "with VERB" -> options, "not run" -> reason, "ends with" -> status

    def commands(self) -> list[str]:
        """The shell commands: continued lines joined, comments and blank lines dropped."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def snippets(text: str) -> Iterator[Snippet]:
    """Every fence of a document; an unclosed one is an error."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = re.match(r"\s*(`{3,}|~{3,})(.*)", lines[number])
        if opening is None:
            number += 1
            continue
        fence, language = opening[1], opening[2].strip()
        assert fence == "```", f"line {number + 1}: fences are three backticks"
        end = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == fence), None)
        assert end is not None, f"line {number + 1}: the fence is not closed"
        orders, above = {}, number - 1
        while above >= 0 and (comment := COMMENT.fullmatch(lines[above].strip())):
            orders[comment[1]] = comment[2]
            above -= 1
        yield Snippet(number + 2, language, "\n".join(lines[number + 1 : end]) + "\n", orders)
        number = end + 1


def check_make(words: list[str]) -> None:
    for word in words:
        assert "=" in word or word in TARGETS, f"make {word}: no such target"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install", f"pip {words[0]} is not checked here"
    for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= EXTRAS, f"unknown extra in [{names}]"


def glm_status(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)


def check_glm(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb exists and its parser takes these arguments."""
    assert arguments, "glm alone is a mistake"
    if arguments[0].startswith("-"):
        assert glm_status(arguments) == 0
        return
    assert arguments[0] in VERBS, f"glm {arguments[0]}: no such verb"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(VERBS[arguments[0]].module), "run", lambda args: 0)
        assert glm_status(arguments) == 0, f"the parser of glm {arguments[0]} refuses {shlex.join(arguments)}"


def glm_arguments(words: list[str]) -> list[str] | None:
    """What `glm` gets in a command, also behind torchrun; None for other commands."""
    if words[0] == "glm":
        return words[1:]
    if words[0] == "torchrun":
        return words[words.index("glmkit") + 1 :]
    return None


def check_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    arguments = glm_arguments(words)
    if arguments is not None:
        check_glm(arguments, monkeypatch)
    elif words[0] == "make":
        check_make(words[1:])
    elif words[0] == "pip":
        check_pip(words[1:])
    elif words[0] in ("pytest", "python"):
        paths = [word.split("::")[0] for word in words[1:] if re.search(r"\.py|^tests", word)]
        assert paths, f"{command}: nothing here can be checked"
        assert [path for path in paths if not (ROOT / path).exists()] == []
    else:
        pytest.fail(f"{command}: no way to check it; write it otherwise or add one to tests/test_docs.py")


def run_shell(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in snippet.commands():
        check_command(command, monkeypatch)
        words = shlex.split(command)
        if words[0] == "glm" and "not run" not in snippet.orders:
            status = glm_status([*words[1:], *shlex.split(snippet.orders.get(f"with {words[1]}", ""))])
            assert status == int(snippet.orders.get("ends with", "0")), f"{command} ended with status {status}"


def run_snippet(snippet: Snippet, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run or check one snippet. Raises AssertionError saying what is wrong with it."""
    assert snippet.language in LANGUAGES, f"line {snippet.line}: language {snippet.language!r}; use {LANGUAGES}"
    if snippet.language == "sh":
        run_shell(snippet, monkeypatch)
    elif snippet.language == "python":
        code = compile(snippet.body, f"line {snippet.line}", "exec")
        if "not run" not in snippet.orders:
            exec(code, names)
    elif snippet.language == "yaml":
        TrainConfig.from_dict(yaml.safe_load(snippet.body))
    else:
        command = re.search(r"^\$? ?(glm|make|pip|import|from) .*", snippet.body, re.MULTILINE)
        assert command is None, f"line {snippet.line}: {command and command[0]!r} belongs in a sh or python fence"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as training leaves it, tiny and untrained."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer((path.read_text() for path in sorted((ROOT / "tests").glob("*.py"))), vocab_size=400)
    shape = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
    config = GLMConfig(**shape, special=tokenizer.special)
    model = GLM(config)
    init_weights(model, config, 0)
    write_model(directory, config, dict(model.named_parameters()))
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def published_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in the layout in which its family was published."""
    folder = tmp_path_factory.mktemp("published")
    special = SpecialIds(pad=3, eos=125, cls=None, mask=120, smask=122, gmask=121, sop=124, eop=125)
    small = {"vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "ffn_size": 64}
    config = replace(preset("chatglm-6b"), **small, special=special)
    model = GLM(config)
    init_weights(model, config, 0)
    (folder / "own").mkdir()
    write_model(folder / "own", config, dict(model.named_parameters()))
    convert(folder / "own", folder / "chatglm-6b", to="huggingface", weights="bin")
    return folder / "chatglm-6b"


@pytest.fixture
def workspace(
    tmp_path: Path, model_directory: Path, published_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A directory as a reader's: the recipes, some text, and what `make demo` left."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(model_directory)
    (tmp_path / "chatglm-6b").symlink_to(published_directory)
    rows = [{"prompt": f"What is {n} + {n}?", "response": f"{n + n}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))  # of docs/finetuning.md
    texts = tmp_path / "my-texts"
    texts.mkdir()
    for number, path in enumerate(sorted((ROOT / "src/glmkit/data").rglob("*.py"))):
        (texts / f"{number}.txt").write_text(path.read_text() or "empty")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The snippets of the Chinese README are those of the English one (test_both_readmes_have_the_same_snippets).
TRANSLATED = pytest.param(ROOT / "README_zh.md", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "path",
    [TRANSLATED if path.name == "README_zh.md" else path for path in DOCUMENTS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_snippets(path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for snippet in snippets(path.read_text()):
        run_snippet(snippet, names, monkeypatch)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nglm fill\n```", "language ''"),
        ("```bash\nglm fill\n```", "language 'bash'"),
        ("```sh\nglm fil m t\n```", "no such verb"),
        ("```sh\nglm fill m t --zzz 3\n```", "the parser of glm fill refuses"),
        ("<!-- not run: it is an example -->\n```sh\nglm fill m t --zzz 3\n```", "the parser of glm fill refuses"),
        ("```sh\nmake zzz\n```", "no such target"),
        ("```sh\npip install 'glmkit[zzz]'\n```", "unknown extra"),
        ("```sh\ncurl x\n```", "no way to check it"),
        ("```text\nglm fill m t\n```", "belongs in a sh or python fence"),
        ("```python\nassert 1 == 2, 'two'\n```", "two"),
    ],
)
def test_a_wrong_snippet_is_found(text: str, message: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(message)):
        for snippet in snippets(text):
            run_snippet(snippet, {}, monkeypatch)


def test_an_unclosed_fence_is_found() -> None:
    with pytest.raises(AssertionError, match="not closed"):
        list(snippets("text\n```sh\nglm fill"))


# --- what the prose names ---------------------------------------------------------------------------------------------


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def is_path(span: str) -> bool:
    """Whether inline code is a path of the repository: a slash and a known ending; RUN/model/ has a placeholder."""
    path = re.fullmatch(r"([\w.-]+)/[\w./-]*", span)
    return path is not None and not path[1].isupper() and span.endswith((".py", ".md", ".yaml", ".sh", "/"))


def anchors(path: Path) -> list[str]:
    """The names by which links reach the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def mistakes(path: Path) -> Iterator[str]:
    text = prose(path)
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        document = path.parent / target if target else path
        if not document.exists():
            yield f"link {target}"
        elif anchor and anchor not in anchors(document):
            yield f"link {target}#{anchor}"
    bases = (ROOT, ROOT / "src", ROOT / "src" / "glmkit", path.parent)
    for span in re.findall(r"`([^`\n]+)`", text):
        verb, target = re.match(r"glm ([a-z]+)\b", span), re.fullmatch(r"make ([a-z-]+)", span)
        if is_path(span) and not any((base / span).exists() for base in bases):
            yield f"path {span}"
        if verb and verb[1] not in VERBS:
            yield f"verb {span}"
        if target and target[1] not in TARGETS:
            yield f"target {span}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_prose_names_exists(path: Path) -> None:
    assert list(mistakes(path)) == []


def test_a_wrong_name_in_the_prose_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    links = "# One, two\n[b](#one-two) [c](#three) [a](absent.md)"
    path.write_text(f"{links} `model/absent.py` `glm zzz MODEL` `make zzz` `model/cache.py` `glm fill M`")
    assert list(mistakes(path)) == [
        "link #three",
        "link absent.md",
        "path model/absent.py",
        "verb glm zzz MODEL",
        "target make zzz",
    ]


@pytest.mark.parametrize("recipe", ["full", "lora", "ptuning"])
def test_options_of_a_method_have_their_defaults(recipe: str) -> None:
    """The page of a method shows what its recipe sets, and every option of its adapter."""
    config = FINETUNING.read(recipe)
    values = config.to_dict()
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (.*?) \|", prose(ROOT / "docs" / f"tuning_{recipe}.md"), re.MULTILINE)
    for section, key, shown in rows:
        value = values[section][key]
        value = ", ".join(value) if isinstance(value, list) else value
        assert (None if shown == "–" else yaml.safe_load(shown)) == (None if value in ("", {}) else value), key
    assert {key for section, key, _ in rows if section == "adapter"} == set(values["adapter"])
    assert len(rows) > 8


def test_both_readmes_have_the_same_snippets() -> None:
    """The Chinese README shows the same commands; only comments, trees and output are translated."""

    def commands(name: str) -> list[list[str]]:
        found = [s for s in snippets((ROOT / name).read_text()) if s.language != "text"]
        return [[s.language, str(s.orders), *s.commands()] for s in found]

    assert commands("README.md") == commands("README_zh.md")

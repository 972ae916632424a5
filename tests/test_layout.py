"""The shape of the repository: layers, budgets, names, docstrings, light imports. Each checker meets a bad example."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from support.shared import ROOT

PACKAGE = ROOT / "src" / "glmkit"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUDGETS = {"src": 400, "tests": 500, "benchmarks": 400, "examples": 400, "scripts": 400}
FAMILY = re.compile(r"^(chat)?glm([-_]?\d.*)?$", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(^|[^a-z.\w])/(work|farm|root|home|Users|opt)/[A-Za-z]", re.MULTILINE)
SOURCES = sorted(PACKAGE.rglob("*.py"))
OUR_TEXT = (".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".sh")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def found_in(check: Callable[[Path], Iterable[str]], paths: Iterable[Path] = SOURCES) -> list[str]:
    """Everything that `check` finds in these files, each with the file's name."""
    return [f"{path.relative_to(ROOT)}: {finding}" for path in paths for finding in check(path)]


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of what a module imports from glmkit; `from a import b` names a.b where b is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "glmkit")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            if base.split(".")[0] == "glmkit":
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_of(module: str) -> tuple[int, str] | None:
    """(layer number from the top, part) of a module by the contract in pyproject.toml; None for the root package."""
    (contract,) = PYPROJECT["tool"]["importlinter"]["contracts"]
    for number, layer in enumerate(contract["layers"]):
        for part in layer.split(" | "):
            if module == part or module.startswith(part + "."):
                return number, part
    return None


def upward_imports(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    mine = layer_of(module)
    assert mine is not None, f"{module} belongs to no layer; add its part to [tool.importlinter] in pyproject.toml"
    wrong = []
    for line, name in imports_of(tree, module, is_package):
        theirs = layer_of(name)
        if theirs is None:
            # The root package holds nothing but the public names; only the command line may ask it for the version.
            if mine[0] != 0:
                wrong.append(f"line {line}: {module} imports {name}")
        elif theirs[1] != mine[1] and theirs[0] <= mine[0]:
            wrong.append(f"line {line}: {module} imports {name}")
    return wrong


def test_imports_point_down() -> None:
    paths = [path for path in SOURCES if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py")]
    assert found_in(lambda p: upward_imports(parsed(p), module_name(p), p.name == "__init__.py"), paths) == []


@pytest.mark.parametrize(
    "source",
    ["from glmkit import load", "from ..cli.main import main", "from .. import cli", "import glmkit.cli.main"],
)
def test_an_upward_import_is_found(source: str) -> None:
    assert len(upward_imports(ast.parse(source), "glmkit.model.transformer", False)) == 1


def test_imports_within_a_part_and_downward_are_allowed() -> None:
    source = "from .attention import A\nfrom ..errors import ConfigError\nfrom glmkit.config import GLMConfig"
    assert upward_imports(ast.parse(source), "glmkit.model.transformer", False) == []


def late_imports(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return [f"line {line}: {name}" for node in functions for line, name in imports_of(node, module, is_package)]


def test_no_function_level_imports_of_our_own() -> None:
    paths = [path for path in SOURCES if path != PACKAGE / "__init__.py" and PACKAGE / "cli" not in path.parents]
    assert found_in(lambda p: late_imports(parsed(p), module_name(p), p.name == "__init__.py"), paths) == []


def test_a_function_level_import_is_found() -> None:
    assert late_imports(ast.parse("def f():\n    from ..config import GLMConfig"), "glmkit.model.x", False)


# --- budgets and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", BUDGETS)
def test_file_length(folder: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in sorted((ROOT / folder).rglob("*.py"))}
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > BUDGETS[folder]}
    assert long == {}, f"the budget is {BUDGETS[folder]} lines; split them"


def family_branches(tree: ast.AST) -> list[str]:
    """Places that branch on a family: comparisons, match cases and startswith with a family's name or `.family`."""
    suspects: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            suspects += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            suspects.append(node.value)
        elif isinstance(node, ast.Match):
            suspects.append(node.subject)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            suspects += [node.func, *node.args]
    found = []
    for suspect in suspects:
        for node in ast.walk(suspect):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and FAMILY.match(node.value):
                found.append(f"line {node.lineno}: {node.value!r}")
            elif isinstance(node, ast.Attribute) and node.attr == "family":
                found.append(f"line {node.lineno}: .family")
    return found


def test_no_branch_on_a_family_outside_families() -> None:
    paths = [path for path in SOURCES if PACKAGE / "families" not in path.parents]
    assert found_in(lambda path: family_branches(parsed(path)), paths) == []


@pytest.mark.parametrize(
    "source",
    [
        "if name == 'chatglm': pass",
        "x = kind in ('glm-130b', 'other')",
        "if name.startswith('glm4'): pass",
        "match name:\n    case 'ChatGLM2-6B': pass",
        "if config.family != label: pass",
    ],
)
def test_a_branch_on_a_family_is_found(source: str) -> None:
    assert family_branches(ast.parse(source))


def our_text_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.suffix in OUR_TEXT or path.name == "Makefile"]
    for folder in (*BUDGETS, "docs", "recipes"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in OUR_TEXT]
    return files


def test_no_machine_paths() -> None:
    assert MACHINE_PATH.search("see /" + "home/someone/x")
    allowed = "/usr/bin"  # standard places are not somebody's machine
    found = [str(path.relative_to(ROOT)) for path in our_text_files() if MACHINE_PATH.search(path.read_text())]
    assert found == [], f"machine paths; only {allowed} and relative paths belong here"


# --- devices ----------------------------------------------------------------------------------------------------------

ACCELERATORS = ("cuda", "mps", "xpu", "npu", "hpu", "mtia", "hip", "rocm", "vulkan")
KIND = re.compile(rf"({'|'.join(ACCELERATORS)})(:\d+)?")


def device_kinds(tree: ast.AST) -> list[str]:
    """Kinds of accelerators: as whole strings, as names in torch, or a device's type compared with a string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KIND.fullmatch(node.value):
            found.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Attribute) and node.attr.removeprefix("is_") in ACCELERATORS:
            found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(isinstance(side, ast.Attribute) and side.attr == "type" for side in sides)
            texts = (part for side in sides for part in (side.elts if isinstance(side, ast.Tuple) else [side]))
            if named and any(isinstance(text, ast.Constant) and isinstance(text.value, str) for text in texts):
                found.append(f"line {node.lineno}: a device's type is compared")
    return found


def test_no_kind_of_device_outside_devices() -> None:
    paths = [path for path in SOURCES if path != PACKAGE / "devices.py"]
    assert found_in(lambda path: device_kinds(parsed(path)), paths) == []


@pytest.mark.parametrize(
    "source",
    [
        "device = 'cuda'",
        "torch.device('cuda:1')",
        "x.to('mps')",
        "torch.cuda.synchronize()",
        "torch.backends.mps.is_available()",
        "if x.is_cuda: pass",
        "model.cuda()",
        "if device.type == 'cpu': pass",
        "if x.device.type in ('cpu', 'meta'): pass",
        "if 'xla' != device.type: pass",
    ],
)
def test_a_kind_of_device_is_found(source: str) -> None:
    assert len(device_kinds(ast.parse(source))) == 1


def test_help_may_name_devices() -> None:
    assert device_kinds(ast.parse('option("auto, cpu, cuda or cuda:N")  # cuda\nif device.type in states: pass')) == []


# --- docstrings -------------------------------------------------------------------------------------------------------


def undocumented(tree: ast.Module, path: Path) -> list[str]:
    missing = [] if ast.get_docstring(tree) else ["the module"]
    # Every verb has these two; cli/main.py says what they do.
    given = {"add_arguments", "run"} if path.parent == PACKAGE / "cli" else set()
    definitions = [
        node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    public = [node for node in definitions if not node.name.startswith("_") and node.name not in given]
    return missing + [node.name for node in public if node.name not in given and not ast.get_docstring(node)]


def test_public_things_have_docstrings() -> None:
    paths = [path for path in SOURCES if not path.stem.startswith("_") or path.name == "__init__.py"]
    assert found_in(lambda path: undocumented(parsed(path), path), paths) == []


def test_a_missing_docstring_is_found() -> None:
    assert undocumented(ast.parse("def f(): ...\nclass _C: ..."), PACKAGE / "x.py") == ["the module", "f"]


# --- errors -----------------------------------------------------------------------------------------------------------

# Ways to take a sentence apart; the first line of a library's error, or its words between single spaces, may be shown.
_TAKEN_APART = {
    "startswith", "endswith", "partition", "rpartition", "replace", "find", "rfind", "index", "count", "removeprefix",
    "removesuffix", "split", "rsplit", "match", "search", "fullmatch", "findall", "finditer", "sub", "translate",
}  # fmt: skip


def sentences(function: ast.AST) -> Callable[[ast.AST], bool]:
    """A test for nodes that stand for the text of an exception: `str(error)`, its args, names and f-strings of it."""
    nodes = list(ast.walk(function))
    errors = {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    notes = [(node.arg, node.annotation) for node in nodes if isinstance(node, ast.arg) and node.annotation is not None]
    errors |= {name for name, note in notes if re.search(r"(Error|Exception)\b", ast.unparse(note))}
    texts: set[str] = set()

    def is_text(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in texts
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in errors:
            return node.attr in ("args", "what", "step", "message")
        if isinstance(node, ast.FormattedValue) and getattr(node.value, "id", None) in errors:
            return True
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("str", "repr"):
            return any(getattr(given, "id", None) in errors for given in node.args)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return is_text(node.func.value)
        parts = isinstance(node, ast.JoinedStr | ast.FormattedValue | ast.Subscript | ast.BoolOp | ast.BinOp)
        return parts and any(map(is_text, ast.iter_child_nodes(node)))

    for node in nodes:
        if isinstance(node, ast.Assign) and is_text(node.value):
            texts |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return is_text


def read_sentences(tree: ast.AST) -> list[str]:
    """Places that look into the text of an exception instead of showing it."""
    found: list[str] = []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions or [tree]:
        is_text = sentences(function)
        for node in ast.walk(function):
            wrong = False
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq | ast.NotEq):
                wrong = is_text(node.left) or any(map(is_text, node.comparators))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TAKEN_APART:
                lines = not node.args or ast.unparse(node.args[0]) == repr("\n")
                wrong = any(map(is_text, node.args)) or (is_text(node.func.value) and not lines)
            if wrong:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_reads_the_sentence_of_an_error() -> None:
    """What a program wants to know of an error travels beside the sentence: its class, `param`, `code`, `step`."""
    assert found_in(lambda path: read_sentences(parsed(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "if 'tokens' in str(error): pass",
        "name = str(error).partition(';')[0]",
        "if error.args[0].startswith('text 0'): pass",
        "text = f'{error}'\n    code = re.search('limit', text)",
        "found = PATTERN.match(str(error))",
        "message = str(error).replace('max_new_tokens', 'max_tokens')",
        "if error.what == 'no room': pass",
    ],
)
def test_a_reader_of_sentences_is_found(source: str) -> None:
    assert len(read_sentences(ast.parse(f"try:\n    f()\nexcept ValueError as error:\n    {source}"))) == 1


def test_showing_an_error_is_no_reading() -> None:
    shown = "x = f'{where}: {error}'\n    y = ' '.join(str(error).split())\n    z = str(error).split('\\n')[0]"
    assert read_sentences(ast.parse(f"try:\n    f()\nexcept ValueError as error:\n    {shown}")) == []


# --- the shape of the tree --------------------------------------------------------------------------------------------

MAX_SOURCES, MIN_MEDIAN, SMALL = 460, 125, 60
QUESTIONS = "What|Where|How|Who|Whose|All|Of|Whether|When|Why|Which|As|That|From|In|To|By|For|With|Raises"
RIDDLES = re.compile(rf"^({QUESTIONS})\b")


def importers() -> dict[str, set[str]]:
    """Module -> the modules that import it."""
    users: dict[str, set[str]] = {name: set() for name in MODULES}
    for module, path in MODULES.items():
        for _, name in imports_of(parsed(path), module, path.name == "__init__.py"):
            if name in users:
                users[name].add(module)
    return users


def small_with_one_user(lines: dict[str, int], users: dict[str, set[str]]) -> list[str]:
    """Files under 60 lines that a single module imports; entry points (a verb, __main__) and families apart."""
    return [
        f"{module} ({lines[module]} lines)"
        for module in lines
        if lines[module] < SMALL
        and len(users[module]) < 2
        and not re.match(r"glmkit\.(cli|families|__main__)\b", module)
    ]


def same_basenames(users: dict[str, set[str]]) -> list[str]:
    """Pairs of modules of one name in two packages of which one imports the other."""
    package = {module: module.rpartition(".")[0] for module in users}
    joined = {(package[user], package[module]) for module, own in users.items() for user in own if user in users}
    named: dict[str, list[str]] = {}
    for module in users:
        if MODULES.get(module, Path()).name != "__init__.py":
            named.setdefault(module.rpartition(".")[2], []).append(module)
    pairs = [(a, b) for same in named.values() for i, a in enumerate(same) for b in same[i + 1 :]]
    return [f"{a} | {b}" for a, b in pairs if {(package[a], package[b]), (package[b], package[a])} & joined]


def test_the_tree_is_of_few_full_files() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items() if path.name != "__init__.py"}
    assert len(SOURCES) <= MAX_SOURCES
    assert statistics.median(lines.values()) >= MIN_MEDIAN
    users = importers()
    assert small_with_one_user(lines, users) == [], "fold them into their user"
    assert same_basenames(users) == [], "one of the two wants another name"


def test_a_small_file_and_a_second_basename_are_found() -> None:
    assert small_with_one_user({"glmkit.data.x": 10}, {"glmkit.data.x": {"glmkit.data.store"}})
    users = {
        "glmkit.model.norm": {"glmkit.generate.beams"},
        "glmkit.generate.beams": set(),
        "glmkit.generate.norm": set(),
    }
    assert same_basenames(users) == ["glmkit.model.norm | glmkit.generate.norm"]


def riddles(tree: ast.AST) -> list[str]:
    """Docstrings that begin with neither a noun nor an imperative."""
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    documented = [(node, ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, kinds)]
    return [
        f"line {getattr(node, 'lineno', 1)}: {text.splitlines()[0]}" for node, text in documented if RIDDLES.match(text)
    ]


def test_docstrings_begin_with_a_noun_or_an_imperative() -> None:
    assert found_in(lambda path: riddles(parsed(path))) == []


def test_a_riddle_is_found() -> None:
    assert riddles(ast.parse('def f():\n    """Where the tokens stand."""'))
    assert not riddles(ast.parse('def f():\n    """Positions of the tokens."""'))


# --- light imports ----------------------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_loads_nothing_heavy(argument: str) -> None:
    code = f"import sys; from glmkit.cli.main import main; assert main([{argument!r}]) == 0; print(*sys.modules)"
    loaded = set(run_python(code).split())
    assert loaded.isdisjoint({"torch", "numpy", "rich", "tokenizers", "yaml", "asyncio"})


def test_importing_the_package_does_not_import_torch() -> None:
    assert "torch" not in run_python("import sys, glmkit; print(*sys.modules)").split()


IMPORT_ALL = """
import importlib, pkgutil, sys

sys.modules.update(dict.fromkeys({blocked!r}))  # None: as if not installed
import glmkit
for info in pkgutil.walk_packages(glmkit.__path__, "glmkit.", onerror=lambda name: None):
    if info.name.startswith(("glmkit.serve.", "glmkit.hf")):  # the extras [serve] and [hf]; who asks for them is told
        continue
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
        print("module", info.name)
for name in glmkit.__all__:
    print("public", name, type(getattr(glmkit, name)).__name__)
"""


def extra_modules() -> set[str]:
    """Import names of everything that only an extra brings."""
    special = {"import-linter": "importlinter", "pytest-xdist": "xdist"}
    names = set()
    for requirements in PYPROJECT["project"]["optional-dependencies"].values():
        for requirement in requirements:
            name = re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]
            if name != "glmkit" and not name.startswith("types-"):
                names.add(special.get(name, name.replace("-", "_")))
    return names - {re.split(r"[\[<>=~! ]", text, maxsplit=1)[0] for text in PYPROJECT["project"]["dependencies"]}


def test_every_module_imports_with_the_core_alone() -> None:
    """And no submodule hides a public name: importing one binds its name in the package, over a function's."""
    assert {"datasets", "matplotlib", "transformers", "importlinter"} <= extra_modules()
    lines = [line.split() for line in run_python(IMPORT_ALL.format(blocked=extra_modules())).splitlines()]
    core = {name for name in MODULES if not name.startswith(("glmkit.serve.", "glmkit.hf"))}
    found = {line[1] for line in lines if line[0] == "module"}
    assert found - {"glmkit.quant.native._kern"} == core - {"glmkit", "glmkit.__main__"}  # compiled at installation
    assert [line[1:] for line in lines if line[0] == "public" and line[2] == "module"] == []


# --- what the README says of the tree ---------------------------------------------------------------------------------


def tree_entries(readme: str) -> set[str]:
    """Paths of the fenced file tree: the block that begins with src/glmkit/."""
    (block,) = [text for text in re.findall(r"```text\n(.*?)```", readme, re.DOTALL) if text.startswith("src/glmkit/")]
    entries, parents = set(), [""]
    for line in block.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        names = [name for name in re.split(r" {2,}", line.strip())[0].split() if re.search(r"[/.]", name)]
        parents = parents[: indent + 1]
        entries |= {parents[-1] + name for name in names}
        if names and names[0].endswith("/"):
            parents.append(parents[-1] + names[0])
    return entries


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_readme_tree_is_the_tree(readme: str) -> None:
    listed = tree_entries((ROOT / readme).read_text())
    missing = [entry for entry in listed if not (ROOT / entry).exists()]
    assert missing == [], "the tree names things that do not exist"
    packages = {str(path.parent.relative_to(ROOT)) + "/" for path in SOURCES if path.name == "__init__.py"}
    assert packages <= listed, "packages that the tree does not show"
    top = {path.name + "/" for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.*"))}
    assert top & {"recipes/", "tests/", "benchmarks/", "docs/", "examples/"} <= listed

"""The conversation of `glm chat`: its lines and files, its commands, options set on the fly, answers."""

import contextlib
import json
import re
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

from glmkit.cli.printing import print_json, shown
from glmkit.errors import GLMKitError, RequestError, TrimmedHistoryWarning
from glmkit.files import atomic_write
from glmkit.generate.conversation import ChatStep, with_system
from glmkit.generate.params import GenerationParams, Option, Values, options_of
from glmkit.session import LM
from glmkit.small_files import parse_small_json, read_small
from glmkit.tokenizer.chat_template import Call, Message, Turns, to_messages

Tools = list[dict[str, Any]]  # in the family's form
_MOST_BYTES = 64 << 20  # of a history or of tools


class HistoryFile:
    """A history as JSON, in the published form of its family; written whole or not at all."""

    def __init__(self, path: str) -> None:
        """Check that it can be written; raises RequestError when its directory is missing, or it is one."""
        self.path = Path(path)
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise RequestError(f"the history file {path} cannot be written there; give a file in an existing directory")

    def read(self) -> Turns:
        """The history, empty when there is no file yet. Raises RequestError when it holds something else."""
        if not self.path.exists():
            return []
        history = _read_list(self.path, "turns", "give another file for the history")
        try:
            to_messages(history)
        except (GLMKitError, TypeError) as error:
            raise RequestError(f"{self.path} holds no history: {error}") from None
        return history

    def write(self, history: Turns) -> None:
        """Replace the file."""
        with atomic_write(self.path) as file:
            file.write(json.dumps(history, ensure_ascii=False, indent=1).encode() + b"\n")


def read_tools(path: str) -> Tools:
    """A list of tools from a JSON file. Raises RequestError when it holds something else."""
    step = "give a list of tools in the family's form"
    tools = _read_list(Path(path), "tools", step)
    if not all(isinstance(tool, dict) for tool in tools):
        raise RequestError(f"{path} holds no list of objects", step=step)
    return tools


def _read_list(path: Path, what: str, step: str) -> list[Any]:
    try:
        values = parse_small_json(read_small(path, RequestError, limit=_MOST_BYTES), str(path), RequestError)
    except RequestError:
        raise RequestError(f"{path} is no JSON", step=step) from None
    if not isinstance(values, list):
        raise RequestError(f"{path} holds {type(values).__name__}, no list of {what}", step=step)
    return values


class Lines:
    """Lines from a terminal, with the prompts of the original demos, or from a pipe, without."""

    def __init__(self, *, name: str, prompts: bool) -> None:
        """name: the model's, shown before its replies."""
        self.shown = prompts and sys.stdin.isatty() and sys.stdout.isatty()
        self._name = name
        if self.shown:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() edits lines with it

    def read(self) -> str | None:
        """The next line that says something, None at the end. Raises UnicodeDecodeError for a line that is no UTF-8."""
        while True:
            line = self._next()
            if line is None or line.strip():
                return line

    def begin_reply(self, command: bool) -> None:
        """Write who speaks now."""
        if self.shown and not command:
            print(f"\n{self._name}：", end="", flush=True)

    def _next(self) -> str | None:
        if self.shown:
            try:
                return input("\n用户：")
            except EOFError:
                print()
                return None
        raw = sys.stdin.buffer.readline()
        return raw.decode("utf-8").rstrip("\r\n") if raw else None


_CLEAR_SCREEN = "\x1b[2J\x1b[H"


def _numbers() -> dict[str, Option]:
    """Options of decoding that lines can set: those with a number for a value."""
    return {option.name: option for option in options_of("chat") if not option.item}


def help_text() -> str:
    """The answer to /help."""
    lines = [
        ("clear, /clear", "forget the conversation (the system message stays)"),
        ("stop, /stop", "end; so does the end of the input"),
        ("/system TEXT", "set the system message; without a TEXT show it"),
        ("/retry", "answer the last message again"),
        ("/history", "show the conversation"),
        ("/help", "this"),
        ("//text", 'say "/text"'),
        ("Ctrl-C", "stop the answer; twice in a row while nothing is being answered: end"),
        ("/OPTION VALUE", 'set an option, "default" for the model\'s own; without a value show it:'),
        *((f"  /{option.name}", option.help) for option in _numbers().values()),
    ]
    pad = " " * 25
    return "\n".join(
        textwrap.fill(text, 100, initial_indent=f"{name:25}", subsequent_indent=pad) for name, text in lines
    )


class Dialogue:
    """A conversation that takes lines and prints answers; it keeps history, system message and options of decoding."""

    def __init__(
        self,
        lm: LM,
        settings: Values,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        file: HistoryFile | None = None,
        as_json: bool = False,
        stream: bool = True,
        specials: bool = False,
    ) -> None:
        """settings: fields of `GenerationParams`. Raises RequestError for some that mean nothing, and for a history,
        a system message or tools that the model has no form for.
        """
        self._lm, self._settings, self._system, self._tools = lm, dict(settings), system, tools
        self._file, self._json, self._stream = file, as_json, stream and not as_json
        self._specials = specials
        self._history: Turns = [] if file is None else file.read()
        self._last: tuple[Turns, str, str] | None = None  # history before it, query, role
        _check(self._settings)
        template = lm.chat_template
        for messages in (to_messages(self._history), [] if system is None else [Message("system", system)]):
            if messages:
                template.check_roles(messages)
        with_system([], template, None, tools)

    def is_command(self, line: str) -> bool:
        """Tell an order to us from a message."""
        return line.strip() in ("clear", "stop") or re.match(r"/[a-z_]+(\s|$)", line.strip()) is not None

    def take(self, line: str) -> bool:
        """Obey or answer a line; False when it ends the conversation. Raises GLMKitError."""
        if self.is_command(line):
            name, _, rest = line.strip().removeprefix("/").partition(" ")
            return self._obey(name, rest.strip())
        query, role = self._message(line)
        self._answer(query, role)
        return True

    def _message(self, line: str) -> tuple[str, str]:
        if self._json and line.lstrip().startswith("{"):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                raise RequestError("the line begins with { but is no JSON object") from None
            unknown = sorted(set(values) - {"query", "role"})
            if unknown or not isinstance(values.get("query"), str):
                raise RequestError('give {"query": TEXT} or {"query": TEXT, "role": ROLE} and nothing else')
            return values["query"], values.get("role", "user")
        return line.removeprefix("/") if line.startswith("//") else line, "user"

    def _answer(self, query: str, role: str) -> None:
        """Print the reply; a Ctrl-C ends it, and what was said until then stays in the history."""
        self._last = ([*self._history], query, role)
        last: ChatStep | None = None
        text = ""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", TrimmedHistoryWarning)
                options: Values = {
                    **self._settings, "system": self._system, "tools": self._tools, "specials": self._specials,
                }  # fmt: skip
                steps = self._lm.chat_steps(query, self._history, role=role, **options)
            for warning in caught:
                print(f"glm chat: {warning.message}", file=sys.stderr, flush=True)
            response: str | Call = ""
            for step in steps:
                last, text = step, text + step.piece
                response = step.response if step.response is not None else response
                if self._stream and step.piece:
                    print(shown(step.piece), end="", flush=True)
            finish: str = last.finish or "" if last is not None else ""
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM
                raise
            finish = "interrupted"
            response = text
        self._print(query, response, text, finish, last)
        if last is not None:
            self._keep(last.history)

    def _print(self, query: str, response: str | Call, text: str, finish: str, last: ChatStep | None) -> None:
        if self._json:
            tokens = 0 if last is None else last.tokens
            answer = {"query": query, "response": response, "finish": finish, "tokens": tokens}
            print_json(answer)
            return
        if not isinstance(response, str):  # a call of a tool
            text = json.dumps(response, ensure_ascii=False)
            print(shown(text), end="", flush=True)
        elif not self._stream:
            print(shown(text), end="")
        print(flush=True)
        if said := {"interrupted": "(stopped)", "length": "(cut at the longest length)"}.get(finish):
            print(said, file=sys.stderr, flush=True)

    def _keep(self, history: Turns) -> None:
        self._history = history
        if self._file is not None:
            self._file.write(history)

    def _obey(self, name: str, rest: str) -> bool:
        if name in ("stop", "exit", "quit"):
            return False
        if name == "clear":
            opening = self._history[:1]
            self._keep([item for item in opening if isinstance(item, dict) and item.get("role") == "system"])
            self._last = None
            if sys.stdout.isatty():
                print(_CLEAR_SCREEN, end="", flush=True)
        elif name == "help":
            print(help_text(), file=sys.stderr)
        elif name == "history":
            for message in to_messages(self._history):
                print(shown(f"{message.role}: {message.content}", sys.stderr), file=sys.stderr)
        elif name == "retry":
            if self._last is None:
                raise RequestError("there is nothing to answer again yet")
            self._history, query, role = self._last
            self._answer(query, role)
        elif name == "system":
            self._set_system(rest)
        elif name in _numbers():
            self._set(name, rest)
        else:
            raise RequestError(f"there is no command /{name}; /help lists them, //{name} says it")
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self._lm.chat_template.check_roles([Message("system", text)])
            self._system = text
        print(f"system: {self._system or ''}", file=sys.stderr)

    def _set(self, name: str, text: str) -> None:
        if text:
            try:
                value = None if text in ("default", "none") else _numbers()[name].kind(text)
            except ValueError:
                raise RequestError(f"{name} is {text!r}; give a number or default") from None
            _check({**self._settings, name: value})
            self._settings[name] = value
        value = self._settings.get(name)
        print(f"{name}: {'default' if value is None else value}", file=sys.stderr)


def reason_of(error: Exception) -> str:
    """One line for a line that could not be answered."""
    return f"a line is not UTF-8 (byte {error.start})" if isinstance(error, UnicodeDecodeError) else str(error)


def _check(settings: Values) -> None:
    """Check that the parameters mean something; raises RequestError."""
    given = {name: value for name, value in settings.items() if value is not None}
    # Without a limit the reply has room for any least length.
    GenerationParams(**{"max_new_tokens": max(1, given.get("min_new_tokens", 1)), **given})

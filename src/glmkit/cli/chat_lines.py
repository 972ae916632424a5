"""What a person or a pipe says, line by line."""

import contextlib
import sys


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

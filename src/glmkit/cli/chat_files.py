"""The files of `glm chat`: the history it keeps, the tools it offers."""

import json
from pathlib import Path
from typing import Any

from glmkit.errors import GLMKitError, RequestError
from glmkit.files import atomic_write
from glmkit.tokenizer.chat import to_messages


class HistoryFile:
    """A history as JSON, in the published form of its family; written whole or not at all."""

    def __init__(self, path: str) -> None:
        """Raises RequestError when it could not be written: its directory is missing, or it is one."""
        self.path = Path(path)
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise RequestError(f"the history file {path} cannot be written there; give a file in an existing directory")

    def read(self) -> list[Any]:
        """The history, empty when there is no file yet. Raises RequestError when it holds something else."""
        if not self.path.exists():
            return []
        try:
            history = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError):
            raise RequestError(f"{self.path} is no JSON; give another file for the history") from None
        if not isinstance(history, list):
            raise RequestError(f"{self.path} holds {type(history).__name__}, no list of turns; give another file")
        try:
            to_messages(history)
        except (GLMKitError, TypeError) as error:
            raise RequestError(f"{self.path} holds no history: {error}") from None
        return history

    def write(self, history: list[Any]) -> None:
        """Replace the file."""
        with atomic_write(self.path) as file:
            file.write(json.dumps(history, ensure_ascii=False, indent=1).encode() + b"\n")


def read_tools(path: str) -> list[dict[str, Any]]:
    """A list of tools from a JSON file. Raises RequestError when it holds something else."""
    try:
        tools = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is no JSON; give a list of tools in the family's form") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RequestError(f"{path} holds no list of objects; give a list of tools in the family's form")
    return tools

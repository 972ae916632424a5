"""Tokenizer and conversations of ChatGLM3-6B: ChatGLM2's vocabulary with role tokens behind it.

Sources: `THUDM/chatglm3-6b:tokenization_chatglm.py` and `modeling_chatglm.py`, `THUDM/ChatGLM3:PROMPT.md`.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import Message

from .common.command_tokenizer import COMMANDS, TOKENIZER_FILES, CommandTokenizer, load_commands
from .common.role_chat import RoleTemplate

__all__ = ["CHAT", "TOKENIZER_FILES", "load_tokenizer"]

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def load_tokenizer(directory: Path, config: GLMConfig | None) -> CommandTokenizer | None:
    """The tokenizer of a published directory, None when `tokenizer.model` is absent. Raises TokenizerError."""
    return load_commands(directory, config, (*COMMANDS, *ROLE_TOKENS), markers=ROLE_TOKENS, named=True)


class ToolCallTemplate(RoleTemplate):
    """Tools stand as JSON in the system message; a call is a python expression `tool_call(name=value, ...)`."""

    name = "ChatGLM3-6B"
    opening = "[gMASK]sop"
    # `THUDM/ChatGLM3:tools_using_demo/`
    tools_intro = "Answer the following questions as best as you can. You have access to the following tools:"
    opened_turns = True

    def expand(self, messages: Sequence[Message]) -> list[Message]:
        written = []
        for message in messages:
            if message.tools is not None:
                if message.role != "system":
                    raise RequestError(f"tools stand in a {message.role!r} message; {self.name} reads them in 'system'")
                tools = json.dumps(list(message.tools), indent=4, ensure_ascii=False)
                message = replace(message, content=f"{message.content}\n{tools}", tools=None)
            written.append(message)
        return written

    def read_call(self, content: str) -> object:
        """The keyword arguments of the call between the first and the last line. Nothing is executed."""
        code = "\n".join(content.split("\n")[1:-1]).strip()
        try:
            call = ast.parse(code, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError("there is no python expression between its first and its last line") from None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "tool_call":
            raise ValueError("it is no tool_call(...)")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("it has arguments without names")
        try:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ValueError("an argument is no plain value") from None


CHAT = ToolCallTemplate()

"""Tokenizers and conversations of ChatGLM2-6B and ChatGLM3-6B: one vocabulary, behind it role tokens in ChatGLM3's.

Sources: `tokenization_chatglm.py` and `modeling_chatglm.py` of `THUDM/chatglm2-6b` and of `THUDM/chatglm3-6b`,
`THUDM/ChatGLM3:PROMPT.md`.
"""

import ast
import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import ChatDefaults, Message
from glmkit.tokenizer.dialogue import Limits

from .common.command_tokenizer import COMMANDS, TOKENIZER_FILES, load_commands
from .common.role_chat import RoleTemplate, Written
from .common.role_tuning import RoleTuning
from .common.round_chat import RoundTemplate
from .common.round_tuning import RoundTuning

__all__ = ["CHAT_2", "CHAT_3", "TOKENIZER_FILES", "TUNING_2", "TUNING_3", "load_tokenizer_2", "load_tokenizer_3"]

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


# Tokenizers of a directory and a config, None when `tokenizer.model` is absent.
load_tokenizer_2 = partial(load_commands, commands=COMMANDS)
load_tokenizer_3 = partial(load_commands, commands=(*COMMANDS, *ROLE_TOKENS), markers=ROLE_TOKENS, named=True)
CHAT_2 = RoundTemplate(
    name="ChatGLM2-6B",
    defaults=ChatDefaults(max_length=8192, temperature=0.8, top_p=0.8),
    end="eos",
    first=1,
    gap="\n\n",
)
TUNING_2 = RoundTuning(template=CHAT_2, limits=Limits(source=1024, target=128), in_source=2, in_target=0)


class ToolCallTemplate(RoleTemplate):
    """Tools stand as JSON in the system message; a call is a python expression `tool_call(name=value, ...)`."""

    name = "ChatGLM3-6B"
    opening = "[gMASK]sop"
    # `THUDM/ChatGLM3:tools_using_demo/`
    tools_intro = "Answer the following questions as best as you can. You have access to the following tools:"
    opened_turns = True
    spaced = True

    def expand(self, messages: Sequence[Message]) -> list[Written]:
        written = []
        for index, message in enumerate(messages):
            if message.tools is not None:
                if message.role != "system":
                    raise RequestError(f"tools stand in a {message.role!r} message; {self.name} reads them in 'system'")
                tools = json.dumps(list(message.tools), indent=4, ensure_ascii=False)
                message = replace(message, content=f"{message.content}\n{tools}", tools=None)
            written.append(Written(message, index))
        return written

    def write_call(self, values: Mapping[str, object]) -> str:
        """A fenced python expression; empty for names that it cannot have."""
        if not all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
            return ""
        arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
        return f"```python\ntool_call({arguments})\n```"

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


CHAT_3 = ToolCallTemplate()
TUNING_3 = RoleTuning(template=CHAT_3, limits=Limits(source=256, target=512))  # `THUDM/ChatGLM3:finetune_demo/configs`

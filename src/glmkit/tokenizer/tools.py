"""Tools in the form that a model's family was taught, for chat, serving and training.

No family is named here: of the forms there are, the one is taken that the family's own template reads back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from glmkit.errors import RequestError

from .chat_template import ChatTemplate, Message


def shown_functions(template: ChatTemplate, functions: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Functions (name, description, parameters) as the family was taught to read them: alone where it takes them so."""
    try:
        template.text([Message("system", "", tools=functions), Message("user", "?")])
    except RequestError:
        return [{"type": "function", "function": function} for function in functions]
    return list(functions)


def offer_tools(
    messages: Sequence[Message],
    template: ChatTemplate,
    tools: Sequence[Mapping[str, object]] | None,
    system: str | None = None,
) -> list[Message]:
    """The messages with these tools, and this system text, in the first one, which is made where there is none."""
    opened = bool(messages) and messages[0].role == "system"
    first = messages[0] if opened else Message("system", template.tools_intro if tools else "")
    content = first.content if system is None else system
    first = replace(first, content=content, tools=first.tools if tools is None else tools)
    return [first, *messages[opened:]]

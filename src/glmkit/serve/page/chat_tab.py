"""The tab for conversations: /v1/chat/completions with messages that can be edited, retried and stopped."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmkit.tokenizer.chat_template import ChatDefaults

from .call import CallError
from .facts import Facts
from .handling import Caller, ReplacedError, StoppedError, language, notice, warn
from .parameters import Parameters, Text, parameters
from .words import word

if TYPE_CHECKING:
    import gradio as gr

_PATH = "/v1/chat/completions"
_LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
Messages = list[dict[str, str]]
Update = tuple[Any, Any]


@dataclass(frozen=True)
class _Turn:
    """messages: what is to be answered; before: what was there; written: what the user sent from the input box."""

    messages: Messages
    before: Messages
    written: str | None = None


class _Turns:
    """Changes of a conversation; each update is (messages, input box)."""

    def __init__(self, caller: Caller, facts: Facts, controls: Parameters) -> None:
        self._caller, self._facts, self._controls = caller, facts, controls

    async def reply(
        self, request: "gr.Request", turn: _Turn, key: str | None, system: str | None, *values: Any
    ) -> AsyncIterator[Update]:
        """Answer the last message of a turn; without an answer everything becomes what it was."""
        import gradio as gr

        opening = [{"role": "system", "content": system}] if system and system.strip() else []
        body: dict[str, Any] = {"model": self._facts.model_id, "messages": opening + turn.messages}
        emptied = {} if turn.written is None else {"value": ""}
        yield turn.messages, gr.update(submit_btn=False, stop_btn=True, **emptied)
        text = ""
        try:
            body |= self._controls.body(values)
            async with aclosing(self._caller.events(request, "chat", _PATH, body, key)) as stream:
                async for events in stream:
                    text += "".join(map(_text, events))
                    if text:
                        yield [*turn.messages, {"role": "assistant", "content": text}], gr.skip()
            if not text:
                accepted = language(request)
                warn(word("nothing", accepted), word("nothing_hint", accepted))
        except ReplacedError:
            return
        except StoppedError:
            pass
        except CallError as error:
            notice(error, request)
        if not text:
            # No message is left without an answer: some models would read it as one with the next.
            yield turn.before, gr.skip() if turn.written is None else gr.update(value=turn.written)


def chat_tab(caller: Caller, facts: Facts, text: Text, key: "gr.Textbox", defaults: ChatDefaults) -> None:
    """Build the tab's contents."""
    import gradio as gr

    chat = gr.Chatbot(
        show_label=False,
        label=text("chat"),
        placeholder=text("chat_empty"),
        elem_id="chat",
        height=f"calc(100dvh - {19.8 if facts.keys else 15.8}rem)",
        min_height="16rem",
        layout="bubble",
        buttons=["copy"],
        editable="user",
        feedback_options=None,
        latex_delimiters=_LATEX,
        group_consecutive_messages=False,
    )
    box = gr.Textbox(
        show_label=False,
        label=text("chat_input"),
        placeholder=text("chat_input"),
        elem_id="chat-input",
        lines=1,
        max_lines=8,
        autofocus=True,
        submit_btn=True,
        stop_btn=False,
    )
    with gr.Accordion(text("parameters"), open=False, elem_classes="parameters"):
        system = gr.Textbox(
            label=text("system"), info=text("system_info"), lines=2, max_lines=6, visible=facts.system, elem_id="system"
        )
        controls = parameters(
            text,
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            max_tokens=(0, defaults.max_length),
            info="max_tokens_chat_info",
        )
    turns = _Turns(caller, facts, controls)

    async def send(request: gr.Request, written: str | None, history: list[Any], *rest: Any) -> AsyncIterator[Update]:
        if not (written and written.strip()):
            yield gr.skip(), gr.skip()
            return
        before = _plain(history)
        turn = _Turn([*before, _user(written)], before, written)
        async for update in turns.reply(request, turn, *rest):
            yield update

    async def retry(request: gr.Request, event: gr.RetryData, history: list[Any], *rest: Any) -> AsyncIterator[Update]:
        before = _plain(history)
        async for update in turns.reply(request, _Turn(_upto_user(before, event.index), before), *rest):
            yield update

    async def edit(request: gr.Request, event: gr.EditData, history: list[Any], *rest: Any) -> AsyncIterator[Update]:
        before = _plain(history)
        messages = [*_upto_user(before, event.index)[:-1], _user(str(event.value))]
        async for update in turns.reply(request, _Turn(messages, before), *rest):
            yield update

    async def stop(request: gr.Request) -> None:
        caller.stop(request, "chat")

    async def clear(request: gr.Request) -> list[Any]:
        caller.stop(request, "chat", replaced=True)
        return []

    async def ready() -> Any:
        return gr.update(submit_btn=True, stop_btn=False)

    silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    rest, outputs = [key, system, *controls.controls], [chat, box]
    answers = (
        box.submit(send, [box, chat, *rest], outputs, **silent),
        chat.retry(retry, [chat, *rest], outputs, **silent),
        chat.edit(edit, [chat, *rest], outputs, **silent),
    )
    for answer in answers:
        # Not in the answer's own last step: the browser takes no next message before that is over.
        answer.then(ready, None, box, **silent)
    box.stop(stop, None, None, **silent)
    chat.clear(clear, None, chat, **silent)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _plain(history: Sequence[Any]) -> Messages:
    """Messages with their text alone, whatever else a browser sends in them."""
    messages = []
    for message in history:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        messages.append({"role": str(message["role"]), "content": "".join(map(str, parts))})
    return messages


def _upto_user(messages: Messages, index: int | tuple[int, int]) -> Messages:
    """The conversation up to the user's message at an index or before it."""
    last = index if isinstance(index, int) else index[0]
    while last > 0 and messages[last]["role"] != "user":
        last -= 1
    return messages[: last + 1]


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")

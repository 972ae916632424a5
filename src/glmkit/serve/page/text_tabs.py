"""The tabs that work on one text: filling its blanks with /v1/infill, going on where it ends with /v1/completions."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from html import escape
from typing import TYPE_CHECKING, Any

from .call import CallError
from .facts import Facts
from .handling import Caller, ReplacedError, StoppedError, language, notice
from .parameters import Text, parameters
from .words import word

if TYPE_CHECKING:
    import gradio as gr

EMPTY = '<div class="result empty"></div>'

Update = tuple[Any, Any, Any]
Body = dict[str, Any]
Events = AsyncGenerator[list[dict[str, Any]], None]

# The result's text to the clipboard, also where the page has no secure address; the button says that it worked.
_COPY = """() => {
  const text = document.querySelector('#NAME .result:not(.empty)')?.textContent;
  const button = document.querySelector('#NAME-copy');
  if (!text || !button) return;
  const old = () => {
    const area = document.createElement('textarea');
    area.value = text; document.body.append(area); area.select();
    document.execCommand('copy'); area.remove();
  };
  (navigator.clipboard ? navigator.clipboard.writeText(text).catch(old) : Promise.resolve(old())).then(() => {
    button.classList.add('copied'); setTimeout(() => button.classList.remove('copied'), 1600);
  });
}"""


class _Tab(ABC):
    """One text in, one text out, with the parts that the model wrote marked."""

    def __init__(self, caller: Caller, facts: Facts, name: str) -> None:
        self._caller, self._facts, self._name = caller, facts, name

    def build(self, text: Text, key: "gr.Textbox", examples: list[str]) -> None:
        """Build the tab's contents."""
        import gradio as gr

        name = self._name
        box = gr.Textbox(
            label=text(f"{name}_input"), info=text(f"{name}_input_info"), lines=5, max_lines=16, elem_id=f"{name}-input"
        )
        if examples:
            with gr.Row(elem_classes="examples"):
                for example in examples:
                    chosen = gr.Button(example, size="sm", min_width=0)
                    chosen.click(None, None, [box], js=f"() => {json.dumps(example)}", api_visibility="private")
        with gr.Row(elem_classes="actions"):
            run = gr.Button(text(f"{name}_run"), variant="primary", elem_id=f"{name}-run")
            stop = gr.Button(text("stop"), variant="stop", visible=False, elem_id=f"{name}-stop")
        with gr.Group(elem_classes="output"):
            with gr.Row(elem_classes="caption"):
                gr.Markdown(text(f"{name}_result"))
                copy = gr.Button(text("copy"), size="sm", min_width=0, scale=0, elem_id=f"{name}-copy")
            result = gr.HTML(EMPTY, elem_id=name)
        with gr.Accordion(text("parameters"), open=False, elem_classes="parameters"):
            controls = parameters(text, temperature=0, top_p=1, max_tokens=(64, 1024), info=f"max_tokens_{name}_info")

        async def start(
            request: gr.Request, written: str | None, key: str | None, *values: Any
        ) -> AsyncIterator[Update]:
            if not (written and written.strip()):
                gr.Info(word("no_text", language(request)))
                yield gr.skip(), gr.skip(), gr.skip()
                return
            yield gr.skip(), gr.update(visible=False), gr.update(visible=True)
            try:
                async with aclosing(self.answer(request, written, controls.body(values), key)) as pieces:
                    async for html in pieces:
                        yield html, gr.skip(), gr.skip()
            except (ReplacedError, StoppedError):
                return
            except CallError as error:
                notice(error, request)

        async def ready() -> tuple[Any, Any]:
            return gr.update(visible=True), gr.update(visible=False)

        async def end(request: gr.Request) -> None:
            self._caller.stop(request, name)

        silent: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        answer = run.click(start, [box, key, *controls.controls], [result, run, stop], **silent)
        answer.then(ready, None, [run, stop], **silent)
        stop.click(end, None, None, **silent)
        copy.click(None, None, None, js=_COPY.replace("NAME", name), **silent)

    @abstractmethod
    def answer(self, request: "gr.Request", written: str, body: Body, key: str | None) -> AsyncGenerator[str, None]:
        """The result as HTML, again and again until it is complete."""

    def _events(self, request: "gr.Request", path: str, body: Body, key: str | None) -> "aclosing[Events]":
        return aclosing(self._caller.events(request, self._name, path, {"model": self._facts.model_id, **body}, key))


class FillTab(_Tab):
    """Fills the blanks of a text."""

    async def answer(
        self, request: "gr.Request", written: str, body: Body, key: str | None
    ) -> AsyncGenerator[str, None]:
        """Each blank as it is written; at the end the text as the server gives it."""
        parts = BlankedText(written, self._facts.blanks)
        answers, done = [""] * len(parts.blanks), [False] * len(parts.blanks)
        yield parts.html(answers, done)
        try:
            async with self._events(request, "/v1/infill", {**body, "text": written}, key) as stream:
                async for events in stream:
                    html = ""
                    for event in events:
                        if "blanks" in event:
                            html = parts.final(event["text"], [blank["text"] for blank in event["blanks"]])
                        else:
                            answers[event["index"]] += event["delta"]
                            done[event["index"]] = event.get("finish_reason") is not None
                    yield html or parts.html(answers, done)
        except (CallError, StoppedError):
            yield parts.html(answers, [bool(answer) for answer in answers])
            raise


class ContinueTab(_Tab):
    """Writes on where a text ends."""

    async def answer(
        self, request: "gr.Request", written: str, body: Body, key: str | None
    ) -> AsyncGenerator[str, None]:
        """The text with what has been written after it."""
        answer = ""
        yield continued(written, answer, over=False)
        try:
            async with self._events(request, "/v1/completions", {**body, "prompt": written}, key) as stream:
                async for events in stream:
                    choices = [choice for event in events for choice in event.get("choices", ())]
                    answer += "".join(choice.get("text", "") for choice in choices)
                    yield continued(written, answer, over=any(choice.get("finish_reason") for choice in choices))
        except (CallError, StoppedError):
            yield continued(written, answer, over=True)
            raise


# --- results as HTML: everything a person or the model wrote is escaped -----------------------------------------------


class BlankedText:
    """A text with blanks, cut where they are. marks: what a blank is written as."""

    def __init__(self, text: str, marks: Sequence[str]) -> None:
        pattern = "|".join(map(re.escape, marks))
        pieces = re.split(f"({pattern})", text) if marks else [text]
        self.around, self.blanks = pieces[0::2], pieces[1::2]

    def html(self, answers: Sequence[str], done: Sequence[bool]) -> str:
        """The text with the answers so far; a blank without any shows its mark."""
        parts = [_escaped(self.around[0])]
        for blank, after, answer, over in zip(self.blanks, self.around[1:], answers, done, strict=True):
            if over or answer:
                parts.append(f'<mark class="{"answer" if over else "answer writing"}">{_escaped(answer)}</mark>')
            else:
                parts.append(f'<mark class="waiting">{_escaped(blank)}</mark>')
            parts.append(_escaped(after))
        return _view("".join(parts))

    def final(self, text: str, answers: Sequence[str]) -> str:
        """The whole filled text, which may lack white space before an answer that the text with blanks has."""
        parts, place = [], 0
        for before, answer in zip(self.around, answers, strict=False):
            kept = before if text.startswith(before + answer, place) else before.rstrip()
            if not text.startswith(kept + answer, place):
                return _view(_escaped(text))
            parts.append(f'{_escaped(kept)}<mark class="answer">{_escaped(answer)}</mark>')
            place += len(kept + answer)
        return _view("".join(parts) + _escaped(text[place:]))


def continued(text: str, answer: str, *, over: bool) -> str:
    """HTML of a text and its continuation by the model."""
    return _view(f'{_escaped(text)}<mark class="{"answer" if over else "answer writing"}">{_escaped(answer)}</mark>')


def _escaped(text: str) -> str:
    # HTML has no NUL: browsers would leave it out.
    return escape(text).replace("\0", "\ufffd")


def _view(html: str) -> str:
    return f'<div class="result" dir="auto">{html}</div>'

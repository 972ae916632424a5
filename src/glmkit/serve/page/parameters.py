"""The parameters of one tab: controls, and what they mean to the API."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .call import CallError

if TYPE_CHECKING:
    from gradio.components import Component

Text = Callable[[str], Any]


@dataclass(frozen=True)
class Parameters:
    """controls: what handlers take as inputs, in order; `body` turns their values into fields of a request."""

    controls: Sequence["Component"]
    names: Sequence[str]

    def body(self, values: Sequence[Any]) -> dict[str, Any]:
        """Fields of a request; what was left empty is left to the server. Raises CallError for a seed that is none."""
        fields = dict(zip(self.names, values, strict=True))
        seed = str(fields.pop("seed") or "").strip()
        if seed:
            try:
                fields["seed"] = int(seed)
            except ValueError:
                raise CallError(400, f"seed: {seed[:40]!r} is not a whole number") from None
        if fields["max_tokens"] == 0:
            del fields["max_tokens"]
        return {name: value for name, value in fields.items() if value is not None}


def parameters(text: Text, *, temperature: float, top_p: float, max_tokens: tuple[int, int], info: str) -> Parameters:
    """Build the controls. text: the words of the page; max_tokens: the value and the most; info: what it counts."""
    import gradio as gr

    with gr.Row():
        heat = gr.Slider(0, 2, temperature, step=0.05, label=text("temperature"), info=text("temperature_info"))
        top = gr.Slider(0.05, 1, top_p, step=0.05, label=text("top_p"), info=text("top_p_info"))
    with gr.Row():
        best = gr.Slider(0, 200, 0, step=1, label=text("top_k"), info=text("top_k_info"))
        penalty = gr.Slider(1, 2, 1, step=0.05, label=text("penalty"), info=text("penalty_info"))
    with gr.Row():
        most = gr.Slider(0, max_tokens[1], max_tokens[0], step=1, label=text("max_tokens"), info=text(info))
        # Not a number: an empty one would become 0.
        seed = gr.Textbox("", label=text("seed"), info=text("seed_info"), max_lines=1, elem_classes="seed")
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed")
    return Parameters((heat, top, best, penalty, most, seed), names)

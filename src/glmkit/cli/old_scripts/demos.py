"""The demos of ChatGLM-6B and its successors: terminal, pages, HTTP.

Source: `THUDM/ChatGLM-6B:cli_demo.py`, `web_demo.py`, `web_demo2.py`, `api.py`. The originals have no flags, their
users edit the name of the model in the file; here it is a flag.
"""

from .script_table import Flag, Script, flag

_PUBLISHER = "ChatGLM-6B"
_HOMES = ("ChatGLM-6B",)
_SAID = "the original names it in its source"


def _model(verb: str) -> tuple[Flag, ...]:
    return (
        flag("model_name_or_path", "text", "THUDM/chatglm-6b", f"{verb} MODEL", _SAID, rule=True),
        flag("quantization_bit", "int", None, f"{verb} quantize", f"4 or 8; {_SAID} (.quantize(4))", rule=True),
        flag("ptuning_checkpoint", "text", None, f"{verb} adapter", "a P-Tuning v2 or LoRA directory", rule=True),
    )


# Of a server; streamlit has flags of its own.
PLACE: tuple[Flag, ...] = (
    flag("host", "text", None, "serve host", f"not there; {_SAID}", rule=True),
    flag("port", "int", None, "serve port", f"not there; {_SAID}", rule=True),
)

CLI_DEMO = Script(
    name="cli_demo", publisher=_PUBLISHER, homes=_HOMES, plan="chat", flags=_model("chat"),
    about="a conversation in the terminal: clear forgets, stop ends",
)  # fmt: skip
WEB_DEMO = Script(
    name="web_demo", publisher=_PUBLISHER, homes=_HOMES, plan="page", flags=(*_model("serve"), *PLACE),
    facts={"serve port": "7860"},
    about="a page for the browser (Gradio)",
)  # fmt: skip
WEB_DEMO2 = Script(
    name="web_demo2", publisher=_PUBLISHER, homes=_HOMES, plan="page",
    flags=(
        *_model("serve"),
        flag("server.port", "int", 8501, "serve port", "streamlit's own flag"),
        flag("server.address", "text", "127.0.0.1", "serve host", "streamlit's own flag; it listens to all without it"),
    ),
    about="a page for the browser (Streamlit)",
    notes=("the page has top-p 0.7 where the original's begins at 0.6, and drops no turns until they do not fit",),
)  # fmt: skip
API = Script(
    name="api", publisher=_PUBLISHER, homes=_HOMES, plan="api", flags=(*_model("serve"), *PLACE),
    facts={"serve host": "0.0.0.0", "serve port": "8000"},
    about="POST / with prompt and history, answered as the original does",
)  # fmt: skip

SCRIPTS = (CLI_DEMO, WEB_DEMO, WEB_DEMO2, API)

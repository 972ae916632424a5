"""The OpenAPI document is true: schemathesis sends what it allows and what it forbids, for a few seconds."""

import json
from functools import partial
from pathlib import Path

import jsonschema_rs
import pytest

from glmkit.serve.app import create_app
from glmkit.serve.schema.chat import EXAMPLE
from glmkit.serve.settings import ServeSettings
from support.fuzzing import fuzz
from support.live import serving
from support.served_models import small_chat

OPERATIONS = {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/infill", "POST /", "GET /v1/models"}


@pytest.mark.exhaustive
def test_the_document_is_true(tmp_path: Path) -> None:
    # A family that chats and fills blanks; few positions, so that no answer that somebody thinks up takes long.
    with serving(partial(small_chat, "chatglm", max_positions=64), model_id="chatglm3-6b") as live:
        fuzzed = fuzz(live.url, tmp_path, seconds=30, examples=5, phases="examples,fuzzing")
        assert fuzzed.failures == []
        assert fuzzed.cases > 40
        assert set(fuzzed.accepted) >= OPERATIONS
        live.settled(lambda: live.lm.engine.rows == 0)
        assert live.complete("the fox").choices[0].text == live.answers("the fox")[0].text


def test_the_document_names_the_served_model() -> None:
    app = create_app(small_chat("chatglm"), ServeSettings(page=False, model_id="served-1"))
    document = app.openapi()
    schemas = document["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "InfillRequest"):
        assert '"enum": ["served-1"]' in json.dumps(schemas[name]["properties"]["model"])
        for example in schemas[name]["examples"]:
            assert example.get("model", "served-1") == "served-1"
            whole = {**schemas[name], "components": document["components"]}
            assert jsonschema_rs.Draft202012Validator(whole).is_valid(example)
    assert EXAMPLE["model"] == "chatglm3-6b"  # the fields' own description is nobody's server

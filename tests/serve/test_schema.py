"""The OpenAPI document is true: schemathesis sends what it allows and what it forbids, for a few seconds."""

from functools import partial
from pathlib import Path

from support.fuzzing import fuzz
from support.live import serving
from support.served_models import small_chat

OPERATIONS = {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/infill", "POST /", "GET /v1/models"}


def test_the_document_is_true(tmp_path: Path) -> None:
    # A family that chats and fills blanks; few positions, so that no answer that somebody thinks up takes long.
    with serving(partial(small_chat, "chatglm", max_positions=64), model_id="chatglm3-6b") as live:
        fuzzed = fuzz(live.url, tmp_path, seconds=30, examples=5, phases="examples,fuzzing")
        assert fuzzed.failures == []
        assert fuzzed.cases > 40
        assert set(fuzzed.accepted) >= OPERATIONS
        live.settled(lambda: live.lm.engine.rows == 0)
        assert live.complete("the fox").choices[0].text == live.answers("the fox")[0].text

"""Errors from inside as answers: status, field, code, and nothing of what a user did not cause."""

import pytest

from glmkit.errors import RequestError, TokenizerError
from glmkit.serve.error_responses import ApiError, as_api_error, refused


@pytest.mark.parametrize(
    ("error", "given", "status", "param"),
    [
        (RequestError("temperature is 9; give less", param="temperature"), (), 400, None),
        (RequestError("temperature is 9; give less", param="temperature"), ("temperature",), 400, "temperature"),
        (RequestError("too few", param="max_new_tokens"), ("max_completion_tokens",), 400, "max_completion_tokens"),
        (RequestError("too few", param="max_new_tokens"), ("prompt", "max_tokens"), 400, "max_tokens"),
        (RequestError("too many", param="max_rows"), ("best_of", "n"), 400, "best_of"),
        (TokenizerError("no text"), ("prompt",), 400, None),
        (ZeroDivisionError("a secret"), (), 500, None),
        (ApiError(404, "no"), (), 404, None),
    ],
)
def test_errors_become_statuses(error: Exception, given: tuple[str, ...], status: int, param: str | None) -> None:
    sent = as_api_error(error, given)
    assert (sent.status, sent.param) == (status, param)
    assert set(sent.body()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in str(sent.body())


def test_the_code_travels_and_a_field_stands_in() -> None:
    with pytest.raises(ApiError) as caught, refused(("prompt", "top_p"), "prompt"):
        raise RequestError("the sentence says top_p", step="shorten it", param="top_k", code="context_length_exceeded")
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    assert caught.value.message == "the sentence says top_p; shorten it"


def test_memory_that_ran_out_is_no_mistake_of_the_client() -> None:
    error = RequestError("the step failed")
    error.__cause__ = RuntimeError("out of memory")
    assert as_api_error(error).status == 500


def test_messages_that_repeat_a_request_are_cut() -> None:
    """A megabyte of a client comes back neither as the message nor as the name of its field."""
    error = ApiError(400, "text: '" + "x" * 1_000_000 + "' is no number", param="y" * 1_000_000, code="c" * 3)
    body = error.body()["error"]
    assert len(str(body)) < 5000
    assert str(body["message"]).startswith("text: 'xxx")
    assert str(body["message"]).endswith("x' is no number")
    assert "(1,000,021 characters)" in str(body["message"])
    assert ApiError(400, "é" * 2000).message == "é" * 2000

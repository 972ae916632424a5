"""What a request may ask: defaults, limits, unknown names, combinations."""

import re
from typing import Any

import pytest

from glmkit.cli.chat_dialogue import help_text
from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.parser import OneLineParser
from glmkit.errors import RequestError
from glmkit.generate.params import OPTIONS, ChatOptions, Face, GenerationOptions, GenerationParams, Option, SpanOptions
from glmkit.generate.sampling import Sampling
from glmkit.serve.schema.common import Body, with_options


def test_the_default_is_one_greedy_answer() -> None:
    params = GenerationParams()
    assert params.sampling == Sampling() == Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
    assert (params.n, params.num_beams, params.logprobs, params.penalises) == (1, 1, None, False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; give a whole number"),
        ({"max_new_tokens": 5.0}, "max_new_tokens is 5.0; give a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; give at least 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens 9 is more than max_new_tokens 8"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": True}, "temperature is True; give a number"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0; give more than 0, at most 1"),
        ({"min_p": 1.5}, "min_p is 1.5; give from 0 to 1, 0 is off"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give more than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; give from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'; give a number"),
        ({"no_repeat_ngram_size": -3}, "no_repeat_ngram_size is -3"),
        ({"stop": 5}, "stop is 5; give a list of texts"),
        ({"stop": ["a", 5]}, "one of stop is 5; give a text"),
        ({"stop": ""}, "stop has an empty text"),
        ({"stop": ["x"] * 1000}, "stop has 1000 texts; give at most 16"),
        ({"stop_ids": [3, -4]}, "one of stop_ids is -4; give at least 0"),
        ({"stop_ids": "ab"}, "stop_ids is 'ab'; give a list of ids"),
        ({"forbidden": [1.5]}, "one of forbidden is 1.5; give an id"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"logprobs": 21}, "logprobs is 21; give from 0 to 20"),
        ({"logprobs": True}, "logprobs is True; give a whole number"),
        ({"n": 0}, "n is 0; give from 1 to 128"),
        ({"n": 129}, "n is 129; give from 1 to 128"),
        ({"num_beams": 0}, "num_beams is 0; give from 1 to 4096"),
        ({"num_beams": 2, "n": 2}, "n does not go with num_beams 2; use num_return_sequences"),
        ({"num_beams": 2, "logprobs": 0}, "logprobs does not go with num_beams 2"),
        ({"num_beams": 2, "stop": "x"}, "stop does not go with num_beams 2; use stop_ids"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is more than num_beams 2; lower it"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 is more than num_beams 1; use n"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": 1e9}, "length_penalty is 1000000000.0; give from -50 to 50"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; give true, false or 'never'"),
        ({"early_stopping": 1}, "early_stopping is 1"),
        ({"beam_length": "all"}, "beam_length is 'all'; give 'row' or 'answer'"),
        ({"max_tokns": 3}, "unknown option 'max_tokns'"),
        ({"repetition_penality": 3}, "unknown option 'repetition_penality'; did you mean 'repetition_penalty'?"),
        ({5: 3}, "unknown option 5; known are beam_length, "),
    ],
)
def test_mistakes_in_one_line(values: dict[Any, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationParams.from_mapping(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_values_make_short_messages() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationParams.from_mapping({"stop": {"x" * 100_000: 1}})
    assert len(str(caught.value)) < 200


def test_from_mapping_takes_null_for_the_default() -> None:
    values = {"temperature": 0.5, "top_p": None, "stop": "end", "stop_ids": [7], "logprobs": None}
    params = GenerationParams.from_mapping(values)
    assert params == GenerationParams(temperature=0.5, stop=("end",), stop_ids=(7,))
    assert params.sampling == Sampling(temperature=0.5)


def test_every_choice_has_its_own_noise() -> None:
    params = GenerationParams(temperature=1.0, seed=5, n=3)
    seeds = [params.choice(index).seed for index in range(3)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_keywords_are_those_of_the_table() -> None:
    assert {*GenerationOptions.__annotations__} == {*OPTIONS}
    assert {*SpanOptions.__annotations__} == {*OPTIONS} - {"max_new_tokens"}
    assert {*ChatOptions.__annotations__} - {*OPTIONS} == {"system", "role", "tools", "max_length", "specials"}
    assert {*OPTIONS} <= {*ChatOptions.__annotations__}


def test_every_row_is_complete_and_its_default_is_allowed() -> None:
    for name, option in OPTIONS.items():
        assert option.name == name
        assert option.help
        assert not option.help.endswith(".")
        assert option.checked(option.default) == option.default


def test_a_new_option_is_on_every_face_with_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Option("share of surprise", low=0, high=1, off=1, api="typical", name="typical_p", kind=float, default=1.0)
    monkeypatch.setitem(OPTIONS, "typical_p", row)
    faces: tuple[Face, ...] = ("generate", "fill", "chat")
    for face in faces:
        parser = OneLineParser(prog="glm x")
        add_generation_arguments(parser, face)
        assert "share of surprise; from 0 to 1 (default: 1.0)" in " ".join(parser.format_help().split())
        assert generation_options(parser.parse_args(["--typical_p", "0.5"]))["typical_p"] == 0.5
    assert re.search(r"/typical_p +share of surprise", help_text())

    @with_options("infill")
    class Asked(Body):
        """A body."""

    schema = Asked.model_json_schema()["properties"]["typical"]
    assert schema["description"] == "Share of surprise."
    assert {"minimum": 0, "maximum": 1, "type": "number"} in schema["anyOf"]
    with pytest.raises(RequestError, match=r"typical_p is 2; give from 0 to 1, 1 is off") as caught:
        row.checked(2)
    assert caught.value.param == "typical_p"

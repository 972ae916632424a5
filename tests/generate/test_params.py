"""What a request may ask: defaults, limits, unknown names, combinations."""

from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.generate.params import GenerationParams
from glmkit.generate.sampling import Sampling


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
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
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
        ({"stop_ids": [3, -4]}, "stop_ids has -4"),
        ({"stop_ids": "ab"}, "stop_ids is 'ab'; give a list of ids"),
        ({"forbidden": [1.5]}, "one of forbidden is 1.5; give an id"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"logprobs": 21}, "logprobs is 21; give from 0 to 20"),
        ({"logprobs": True}, "logprobs is True; give a whole number"),
        ({"n": 0}, "n is 0; give from 1 to 128"),
        ({"n": 129}, "n is 129; give from 1 to 128"),
        ({"num_beams": 0}, "num_beams is 0; give from 1 to 4096"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature does not go with num_beams 2"),
        ({"num_beams": 2, "n": 2}, "n does not go with num_beams 2; use num_return_sequences"),
        ({"num_beams": 2, "logprobs": 0}, "logprobs does not go with num_beams 2"),
        ({"num_beams": 2, "stop": "x"}, "stop does not go with num_beams 2; use stop_ids"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is more than num_beams 2; lower it"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 is more than num_beams 1; use n"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": 1e9}, "length_penalty is 1000000000.0; give from -50 to 50"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; give true, false or 'never'"),
        ({"early_stopping": 1}, "early_stopping is 1"),
        ({"beam_length": "all"}, "beam_length is 'all'"),
        ({"max_tokns": 3}, "unknown parameter 'max_tokns'"),
        ({"repetition_penality": 3}, "unknown parameter 'repetition_penality'; did you mean 'repetition_penalty'?"),
        ({5: 3}, "unknown parameter 5; known are max_new_tokens"),
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

"""Beam search as transformers 4.33.3 did it: its results for logits that the last two tokens decide, without a model.

The logits are `table[last] + 0.7 * table[second last].roll(1)`; expected ids end in the first stop where a stop came.
"""

from typing import Any

import pytest
import torch

from glmkit.generate.jobs.beam_search import Beams
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import ids_tensor, process

pytestmark = pytest.mark.sampled(4)

Case = tuple[list[int], tuple[int, ...], dict[str, Any], list[list[int]], list[float]]
CASES: list[Case] = [
    ([3, 3], (5,), {"num_beams": 3},
     [[7, 8, 1, 1, 1, 1, 1], [7, 8, 7, 1, 1, 1, 1], [7, 8, 8, 8, 8, 8, 8]],
     [-0.532552, -0.59166, -0.664991]),
    ([3, 7, 1], (5,), {"num_beams": 3, "length_penalty": 2.0},
     [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 2, 2]],
     [-0.043718, -0.059509, -0.064022]),
    ([3, 7, 1], (5,), {"num_beams": 3, "length_penalty": -1.0},
     [[1, 5], [1, 1, 5], [1, 1, 1, 5]],
     [-9.703368, -15.219364, -21.97142]),
    ([3, 7, 1], (5, 2), {"num_beams": 4, "length_penalty": 0.0},
     [[5], [1, 5], [1, 5], [1, 1, 5]],
     [-1.681278, -2.425842, -2.860705, -3.043873]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": True},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [5]],
     [-0.394918, -0.416167, -0.47376]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": "never", "length_penalty": 3.0},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [3, 7, 8, 8, 8, 8, 8]],
     [-0.003264, -0.003439, -0.003943]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": False, "length_penalty": 3.0},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [3, 7, 8, 8, 8, 8, 8]],
     [-0.003264, -0.003439, -0.003943]),
    ([6, 2], (8,), {"num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.7},
     [[7, 8], [7, 3, 7, 8], [7, 6, 3, 7, 8], [4, 3, 7, 8]],
     [-0.873697, -0.992024, -1.023996, -1.075793]),
    ([6, 2], (8, 5), {"num_beams": 3, "min_new_tokens": 4, "repetition_penalty": 1.3},
     [[7, 6, 3, 7, 8], [7, 3, 7, 1, 1, 1, 1], [7, 6, 3, 7, 1, 1, 1]],
     [-0.673777, -0.760896, -0.766953]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[2]))
def test_recorded(case: Case) -> None:
    prompt, stops, options, expected, scores = case
    size = options["num_beams"]
    table_VV = torch.randn(12, 12, generator=torch.Generator().manual_seed(8)) * 1.5
    table_VV[:, 11] = -9
    stops_S, none = ids_tensor(stops, 12, torch.device("cpu")), torch.tensor([], dtype=torch.long)
    params = GenerationParams(max_new_tokens=7, num_return_sequences=size, **options)
    beams = Beams(params, len(prompt), stops)
    while not beams.done:
        tokens_KL = torch.cat([torch.tensor(prompt).expand(size, -1), beams.answer_KN], 1)
        logits_KV = table_VV[tokens_KL[:, -1]] + 0.7 * table_VV[tokens_KL[:, -2]].roll(1, -1)
        log_p_KV = logits_KV.log_softmax(-1)
        beams.advance(process(log_p_KV, params, tokens_KL, len(prompt), stops=stops_S, forbidden=none))
    answers = beams.answers()
    assert [one.ids if one.stop_id is None else [*one.ids, stops[0]] for one in answers] == expected
    assert [one.score for one in answers] == pytest.approx(scores, abs=2e-6)

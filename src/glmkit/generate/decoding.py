"""Answers to a batch of prompts in lockstep: greedy, sampled, or by beams.

Legend: B prompts, R rows (n answers, or K beams, of each prompt side by side), V vocabulary rows, L tokens so far.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.model import GLM

from .answer import Answer
from .beam import Beams
from .growing import Bounds, GrowingAnswer
from .params import GenerationParams
from .processors import process
from .prompts import PromptBatch

# Called with (prompt, answer, token) for every new token; True ends that answer behind it.
Watch = Callable[[int, int, int], bool]


@torch.inference_mode()
def decode_rows(
    model: GLM,
    rows: Sequence[Sequence[int]],
    params: GenerationParams,
    *,
    stops: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    padding: Sequence[int] | None = None,
    watch: Watch | None = None,
    **places: Any,
) -> list[list[Answer]]:
    """For every prompt its answers: `n`, or the best `num_return_sequences` beams. A batch gives what each gives alone.

    rows: whole prompts, added tokens included. stops: ids that end an answer; params.stop_ids do as well. forbidden:
    ids never produced, besides params.forbidden. padding: how many leading tokens of each row are padding, which the
    model never reads; like transformers, penalties and beam_length "row" do count it. watch: sees every token, which
    is how stop texts are found; needed with params.stop. places: as for `PromptBatch`.
    Raises RequestError for prompts that do not fit, and NaN logits.
    """
    if params.stop and watch is None:
        raise RequestError("stop texts need a reader of the text; give watch, or use stop_ids")
    if not rows:
        return []
    padding = [0] * len(rows) if padding is None else padding
    read = [list(row[skip:]) for row, skip in zip(rows, padding, strict=True)]
    batch = PromptBatch(model, read, int(params.max_new_tokens), **places)
    bounds = Bounds.of(params, model.config.vocab_size, model.device, stops=stops, forbidden=forbidden)
    if params.num_beams > 1:
        return _beams(batch, [torch.tensor(row, device=model.device) for row in rows], params, bounds)
    return _answers(batch, rows, params, bounds, watch)


def _answers(
    batch: PromptBatch,
    prompts: Sequence[Sequence[int]],
    params: GenerationParams,
    bounds: Bounds,
    watch: Watch | None,
) -> list[list[Answer]]:
    copies = int(params.n)
    numbers = [(prompt, number) for prompt in range(len(prompts)) for number in range(copies)]
    growing = [GrowingAnswer(prompts[prompt], params, bounds, number=number) for prompt, number in numbers]
    logits_RV = batch.read(copies).repeat_interleave(copies, 0)
    while True:
        tokens = [0] * len(growing)
        for index, (one, (prompt, number)) in enumerate(zip(growing, numbers, strict=True)):
            token = one.take(logits_RV[index : index + 1]) if one.answer is None else None
            if token is None:
                continue
            tokens[index] = token
            if watch is not None and watch(prompt, number, token):
                one.finish(stopped=True)
        live = [one.answer is None for one in growing]
        if not any(live):
            done = [one.answer for one in growing if one.answer is not None]
            return [done[start : start + copies] for start in range(0, len(done), copies)]
        logits_RV = batch.step(tokens, live)


def _beams(
    batch: PromptBatch,
    prompts: Sequence[Tensor],
    params: GenerationParams,
    bounds: Bounds,
) -> list[list[Answer]]:
    size = int(params.num_beams)
    beams = [Beams(params, len(prompt), bounds.ends, prompt.device) for prompt in prompts]
    logits_RV = batch.read(size).repeat_interleave(size, 0)
    while True:
        order = torch.arange(len(beams) * size, device=logits_RV.device)
        for index, (one, prompt) in enumerate(zip(beams, prompts, strict=True)):
            if one.done:
                continue
            own = slice(index * size, (index + 1) * size)
            tokens_KL = torch.cat([prompt.expand(size, -1), one.answer_KN], 1)
            log_p_KV = torch.log_softmax(logits_RV[own], dim=-1)
            scores_KV = process(
                log_p_KV, params, tokens_KL, len(prompt), stops=bounds.stops, forbidden=bounds.forbidden
            )
            one.advance(scores_KV)
            order[own] = index * size + one.parents_K
        if all(one.done for one in beams):
            return [one.answers() for one in beams]
        batch.select(order)
        tokens = [token for one in beams for token in one.newest()]
        logits_RV = batch.step(tokens, [not one.done for one in beams for _ in range(size)])

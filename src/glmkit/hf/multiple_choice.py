"""The model that tells how probable each of several answers to a blank is.

Legend: B batch, C choices, T tokens, L tokens of a choice, N tokens of all choices, H hidden width, V vocabulary rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MultipleChoiceModelOutput

from glmkit.errors import RequestError

from .configuration import GLMConfig
from .heads import HeadModel
from .model_inputs import one_of


class GLMForMultipleChoice(HeadModel):
    """GLM (2022) with scores of the answers that `tokenizer.build_inputs_for_multiple_choice` puts behind a text."""

    config_class = GLMConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        choice_ids: Sequence[Sequence[Any]] | None = None,
        choice_indices: Sequence[Sequence[Any]] | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores (B,C) as `logits`, float32: of each choice the sum of the log-probabilities of its tokens.

        Inputs are those of `tokenizer.build_inputs_for_multiple_choice`; choice_ids[b][c] are the tokens of a choice,
        choice_indices[b][c] the columns that predict them. labels (B,): the right choices; the loss is a cross-entropy
        over the scores, in the model's dtype. Logits over the vocabulary are made in these columns alone and not given.
        Raises RequestError for rows with unequal numbers of choices and for what does not fit.
        """
        if input_ids is None:
            raise RequestError("input_ids were not given", param="input_ids")
        choices, lengths = _choices(choice_ids, choice_indices, input_ids, self.core.config.vocab_size)
        inputs = input_ids, position_ids, attention_mask, None
        hidden_BTH, shown = self._pass(inputs, None, output_hidden_states, output_attentions)
        rows_N, columns_N, tokens_N = choices.to(hidden_BTH.device)
        log_probs_NV = self.logits_of(hidden_BTH[rows_N, columns_N]).float().log_softmax(-1)
        log_probs_N = log_probs_NV.gather(1, tokens_N[:, None].to(log_probs_NV.device))[:, 0]
        scores_BC = torch.stack([own.sum() for own in torch.split(log_probs_N, lengths)]).view(len(input_ids), -1)
        loss = None
        if labels is not None:
            loss = one_of(scores_BC, labels).to(hidden_BTH.dtype)
        return self._output(MultipleChoiceModelOutput, return_dict, loss=loss, logits=scores_BC, hidden_states=shown)


def _choices(
    ids: Sequence[Sequence[Any]] | None, columns: Sequence[Sequence[Any]] | None, ids_BT: Tensor, vocab_size: int
) -> tuple[Tensor, list[int]]:
    """(3,N) rows, columns and tokens of all choices one after another, and the length of each."""
    batch, width = ids_BT.shape
    if ids is None or columns is None:
        name = "choice_ids" if ids is None else "choice_indices"
        raise RequestError(f"{name} were not given", step="call build_inputs_for_multiple_choice", param=name)
    counts = [len(row) for row in ids]
    if len(ids) != batch or [len(row) for row in columns] != counts:
        what = f"choice_ids have {counts} choices, choice_indices {[len(row) for row in columns]}, for {batch} rows"
        raise RequestError(what, step="give both of the same call", param="choice_indices")
    if len(set(counts)) > 1 or not counts or not counts[0]:
        what = f"the rows have {', '.join(map(str, counts))} choices: scores of one batch are a rectangle"
        raise RequestError(what, step="batch rows with equal numbers of choices together", param="choice_ids")
    parts: list[Tensor] = []
    for row, (row_ids, row_columns) in enumerate(zip(ids, columns, strict=True)):
        for choice, (some_ids, some_columns) in enumerate(zip(row_ids, row_columns, strict=True)):
            tokens_L, columns_L = (torch.as_tensor(own).long().reshape(-1).cpu() for own in (some_ids, some_columns))
            if not len(tokens_L) or len(tokens_L) != len(columns_L):
                what = f"choice {choice} of row {row} has {len(tokens_L)} tokens and {len(columns_L)} columns"
                raise RequestError(what, step="give as many of both, and some", param="choice_indices")
            parts.append(torch.stack([torch.full_like(tokens_L, row), columns_L, tokens_L]))
    found = torch.cat(parts, 1)
    for name, own, limit in (("choice_indices", found[1], width), ("choice_ids", found[2], vocab_size)):
        if int(own.min()) < 0 or int(own.max()) >= limit:
            raise RequestError(
                f"{name} reach from {int(own.min())} to {int(own.max())}, the limit is {limit}", param=name
            )
    return found, [part.shape[1] for part in parts]

"""`model.base_model`: the model below its head as tools of transformers call it, TRL's losses among them.

Legend: B batch, T tokens, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from glmkit.config import GLMConfig
from glmkit.errors import RequestError

from .model_inputs import PACKING_STEP
from .past_keys import CACHE_NAME, one_cache

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class BodyView:
    """The body of a model with a call of its own; attributes are those of the body, or else of the model.

    Its last_hidden_state is (B,T,H), whatever the order of the published code: tools know no other.
    """

    def __init__(self, model: Any) -> None:
        """Look at a model, of which nothing is copied."""
        self._model = model

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model.body, name, None)
        return getattr(self._model, name) if found is None else found

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """(B,T,H) final hidden states, and the cache; see the model's own call.

        Raises RequestError for packed rows, and in training for rows of prefix models without an answer: so tools
        encode a question and its answer as one text, all of which would see the answer.
        """
        if packed := [name for name in _PACKED if name in others]:
            what = f"{packed[0]} means rows of several texts, which would see each other here"
            raise RequestError(what, step=PACKING_STEP, param=packed[0], code="packed")
        if others or output_attentions:
            raise TypeError(f"base_model has no argument {min({*others} or {'output_attentions'})!r}")
        model = self._model
        if model.training and model.names.head is None:
            raise RequestError(
                f"the head of {model.meaning.family.title} is its word table, and tools make losses of a head's own",
                step="use transformers' Trainer or glm finetune",
                code="no_head",
            )
        if model.training and input_ids is not None and position_ids is None:
            _require_answers(input_ids, model.core.config)
        known = one_cache(past_key_values, cache)
        if known is None and use_cache:
            known = model.new_cache()
        layers: list[Tensor] | None = [] if output_hidden_states else None
        hidden_BTH = model.states(input_ids, position_ids, attention_mask, known, inputs_embeds, layers)
        shown = None if layers is None else (*layers[:-1], hidden_BTH)
        return BaseModelOutputWithPast(last_hidden_state=hidden_BTH, hidden_states=shown, **{CACHE_NAME: known})


def _require_answers(ids_BT: Tensor, config: GLMConfig) -> None:
    special = config.special
    if config.mask != "prefix" or special is None:
        return
    behind_BT = (ids_BT == special.sop).cumsum(1) > 0
    ends = torch.tensor([special.sop, special.eop, special.eos, special.pad], device=ids_BT.device)
    empty_B = behind_BT.any(1) & ~(behind_BT & ~torch.isin(ids_BT, ends)).any(1)
    if bool(empty_B.any()):
        raise RequestError(
            f"row {int(empty_B.int().argmax())} of input_ids has no answer behind the start of piece {special.sop}: "
            "prompt and completion were encoded as one text, all of which sees the answer",
            step="give input_ids that tokenizer.build_inputs_with_special_tokens(prompt_ids, answer_ids) made, and a "
            "completion_mask (completion_only_loss=True)",
            param="input_ids",
            code="no_answer",
        )

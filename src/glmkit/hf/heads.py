"""Models with a head for classes of whole texts, as published: read where a directory has it, else new.

Legend: B batch, C classes or choices, T tokens, S tokens cached and new, H hidden width.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.materialize import fetch, refuse_bad
from glmkit.checkpoint.open import Checkpoint
from glmkit.config import GLMConfig as CoreConfig
from glmkit.devices import CPU
from glmkit.errors import MismatchWarning, RequestError

from .configuration import ChatGLMConfig, GLMConfig, Meaning, PublishedConfig
from .model_inputs import class_loss, one_of, read_inputs
from .modeling import GLMPreTrainedModel
from .past_keys import CACHE_NAME, one_cache

_DROPOUT = 0.1  # of the published config, where a config.json does not say it
_DEVIATION = 0.02  # likewise, of first weights


class HeadModel(GLMPreTrainedModel):
    """A model whose hidden states go into something else than logits of every token."""

    def _pass(
        self, inputs: Sequence[Any], known: Cache | None, every_layer: bool | None, attentions: bool | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """(B,T,H) final hidden states, and on request those of all layers as published.

        inputs: ids, positions, mask and word vectors.
        """
        if attentions:
            raise RequestError("attention weights are never made here", step="leave it out", param="output_attentions")
        if every_layer is None:
            every_layer = bool(self.config.output_hidden_states)
        states: list[Tensor] | None = [] if every_layer else None
        ids, positions, mask, words = inputs
        hidden_BTH = self.states(ids, positions, mask, known, words, states)
        return hidden_BTH, None if states is None else self.shown_states(states, hidden_BTH)

    def _output(self, kind: Any, return_dict: bool | None, **parts: Any) -> Any:
        parts = {name: part for name, part in parts.items() if part is not None}
        if return_dict is None:
            return_dict = bool(self.config.return_dict)
        return kind(**parts) if return_dict else tuple(parts.values())


class _Classifier(HeadModel):
    """A model with a head for whole texts, which is read where it is stored, else new.

    per_choice: ids may be (B,C,T), of which each text has one score.
    """

    per_choice = False

    def __init__(self, config: PublishedConfig, *, meaning: Meaning | None = None) -> None:
        """Build the modules; a new head is drawn from torch's generator. Raises RequestError where none was published.

        meaning: known already, of a checkpoint.
        """
        super().__init__(config, meaning=meaning)
        if not self.remote.classifies:
            raise RequestError(
                f"{self.meaning.family.title} was published without a class for sequence classification",
                step="take a later release, or put a head of your own on output_hidden_states",
            )
        self.num_labels = config.num_labels
        for name, layer in self._layers(config, self.meaning.config.hidden_size).items():
            self.add_module(name, layer)
            if not layer.weight.is_meta:
                self._draw(layer)
        self.dropout = nn.Dropout(self._dropout(config))

    @staticmethod
    def _layers(config: PublishedConfig, width: int) -> dict[str, nn.Linear]:
        """The layers of the head by their published names."""
        raise NotImplementedError

    @staticmethod
    def _dropout(config: PublishedConfig) -> float:
        raise NotImplementedError

    def _draw(self, layer: nn.Linear) -> None:
        """Give a layer first values, as the published code does."""
        raise NotImplementedError

    def _classes(self, hidden_BTH: Tensor, real_BT: Tensor | None) -> Tensor:
        """Logits (B,C). real_BT: where tokens are, None = everywhere."""
        raise NotImplementedError

    @classmethod
    def _added(cls, config: PublishedConfig, core: CoreConfig) -> dict[str, TensorInfo]:
        with torch.device("meta"):
            layers = nn.ModuleDict(cls._layers(config, core.hidden_size))
        return {name: TensorInfo(value.dtype, tuple(value.shape)) for name, value in layers.named_parameters()}

    @torch.no_grad()
    def _fill_added(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        names = list(self._added(self.config, self.meaning.config))
        if checkpoint.added:
            bad: dict[str, None] = {}
            filled = {name: fetch(checkpoint.weights, name, dtype, CPU, bad) for name in names}
            refuse_bad({name: name for name in bad}, str(checkpoint.directory))
            for name, value in filled.items():
                stem, _, parameter = name.rpartition(".")
                setattr(self.get_submodule(stem), parameter, nn.Parameter(value))
            return
        for stem in dict.fromkeys(name.rpartition(".")[0] for name in names):
            layer = self.get_submodule(stem).to_empty(device=CPU)
            assert isinstance(layer, nn.Linear)
            self._draw(layer)
            layer.to(dtype)
        self._drawn = names
        warnings.warn(
            f"{checkpoint.directory} has no {' and no '.join(names)}: the head is new and must be trained",
            MismatchWarning,
            stacklevel=5,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
    ) -> Any:
        """Logits (B,C) of classes, with labels the loss, on request hidden states and a cache.

        Inputs as those of the language model; rows may be padded on either side where attention_mask says so, and
        without one every token counts. labels: (B,) classes, or numbers (B,) or (B,C), by `config.problem_type`, which
        labels decide where it is None. The loss is taken in float32 and given in the model's dtype.
        Raises RequestError for what contradicts or does not fit.
        """
        shape = None
        if input_ids is not None and input_ids.dim() == 3:
            shape = self._choices(input_ids)
            given = (input_ids, position_ids, attention_mask)
            input_ids, position_ids, attention_mask = (None if own is None else own.flatten(0, 1) for own in given)
        known = one_cache(past_key_values, cache)
        if use_cache and known is None:
            known = self.new_cache()
        past = 0 if known is None else int(known.get_seq_length())
        ids = self._ids(input_ids, inputs_embeds)
        real_BT = self._real(ids, position_ids, attention_mask, past)
        inputs = input_ids, position_ids, attention_mask, inputs_embeds
        hidden_BTH, shown = self._pass(inputs, known, output_hidden_states, output_attentions)
        logits_BC = self._classes(hidden_BTH, real_BT)
        logits_BC = logits_BC if shape is None else logits_BC.view(shape)
        loss = None
        if labels is not None:
            self._check_training()
            loss = class_loss(logits_BC, labels, self.config) if shape is None else one_of(logits_BC, labels)
            loss = loss.to(hidden_BTH.dtype)
        parts = {"loss": loss, "logits": logits_BC, CACHE_NAME: known if use_cache else None, "hidden_states": shown}
        return self._output(SequenceClassifierOutputWithPast, return_dict, **parts)

    def _choices(self, ids_BCT: Tensor) -> torch.Size:
        """(B,C) of texts with choices. Raises RequestError where a choice has not one score."""
        if not self.per_choice:
            raise RequestError(f"input_ids are {tuple(ids_BCT.shape)}", step="give ids (B,T)", param="input_ids")
        if self.num_labels != 1:
            raise RequestError(
                f"input_ids are {tuple(ids_BCT.shape)}, and the head has {self.num_labels} outputs for a choice",
                step="give num_labels=1 on loading, or ids (B,T)",
                param="input_ids",
            )
        return ids_BCT.shape[:2]

    def _real(self, ids_BT: Tensor, positions: Tensor | None, mask: Tensor | None, past: int) -> Tensor | None:
        """(B,T) True where a token is; of a mask (B,1,T,S) where a token sees itself, as padding does not."""
        given = read_inputs(ids_BT, positions, mask, past=past, config=self.core.config, remote=self.remote)
        if given.mask is None or given.mask.dim() == 2:
            return given.mask
        return given.mask[:, 0, :, past:].diagonal(dim1=-2, dim2=-1)

    def _check_training(self) -> None:
        """Warn once when a new head is trained around: PEFT freezes it, and does not know these names by itself."""
        if not (self.training and self._drawn):
            return
        stems = list(dict.fromkeys(name.rpartition(".")[0] for name in self._drawn))
        if not any(value.requires_grad for stem in stems for value in self.get_submodule(stem).parameters()):
            warnings.warn(
                f"the new head is frozen, so it is neither trained nor saved with an adapter: give "
                f"modules_to_save={stems} to PEFT, which does not know these names",
                MismatchWarning,
                stacklevel=4,
            )
            self._drawn = ()


class ChatGLMForSequenceClassification(_Classifier):
    """ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B with a linear head at the last token of a text.

    The published code takes the last column, which is this token where rows are padded on the left, as its tokenizer
    pads them; here it is the last one that attention_mask calls a token.
    """

    config_class = ChatGLMConfig

    @staticmethod
    def _layers(config: PublishedConfig, width: int) -> dict[str, nn.Linear]:
        return {"classifier_head": nn.Linear(width, config.num_labels)}

    @staticmethod
    def _dropout(config: PublishedConfig) -> float:
        return config.classifier_dropout or 0.0

    def _draw(self, layer: nn.Linear) -> None:
        layer.reset_parameters()

    def _classes(self, hidden_BTH: Tensor, real_BT: Tensor | None) -> Tensor:
        pooled_BH = _state_of(hidden_BTH, real_BT, last=True)
        return _run(self.classifier_head, self.dropout(pooled_BH))


class GLMForSequenceClassification(_Classifier):
    """GLM (2022) with a head of two layers at the first token of a text, its [CLS].

    ids (B,C,T), with masks and positions alike, are texts with C choices each: num_labels is 1 then, the logits are
    (B,C), and labels (B,) name the right choices. The published code takes column 0, which is padding where rows are
    padded on the left; here it is the first token.
    """

    config_class = GLMConfig
    per_choice = True

    @staticmethod
    def _layers(config: PublishedConfig, width: int) -> dict[str, nn.Linear]:
        return {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, config.num_labels)}

    @staticmethod
    def _dropout(config: PublishedConfig) -> float:
        own = config.classifier_dropout
        return float(getattr(config, "output_dropout_prob", _DROPOUT) if own is None else own)

    def _draw(self, layer: nn.Linear) -> None:
        nn.init.normal_(layer.weight, std=getattr(self.config, "initializer_range", _DEVIATION))
        nn.init.zeros_(layer.bias)

    def _classes(self, hidden_BTH: Tensor, real_BT: Tensor | None) -> Tensor:
        pooled_BH = self.dropout(_state_of(hidden_BTH, real_BT, last=False))
        return _run(self.out_proj, self.dropout(torch.tanh(_run(self.dense, pooled_BH))))


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of a head, in the type that it has: trainers keep it in float32 on a model in half precision."""
    y: Tensor = layer(x.to(next(layer.parameters()).dtype))
    return y


def _state_of(hidden_BTH: Tensor, real_BT: Tensor | None, *, last: bool) -> Tensor:
    """(B,H): of each row the state of its last token, or of its first. Raises RequestError for a row without any."""
    length = hidden_BTH.shape[1]
    if real_BT is None:
        return hidden_BTH[:, length - 1 if last else 0]
    if empty := [row for row, some in enumerate(real_BT.any(1).tolist()) if not some]:
        raise RequestError(f"row {empty[0]} is padding alone", step="leave it out", param="attention_mask")
    column_B = length - 1 - real_BT.flip(1).int().argmax(1) if last else real_BT.int().argmax(1)
    rows_B = torch.arange(len(hidden_BTH), device=hidden_BTH.device)
    return hidden_BTH[rows_B, column_B.to(hidden_BTH.device)]

"""`PreTrainedModel` classes over the core: one body of modules in the published tree, and the published calls of it.

Legend: B batch, T tokens, S tokens cached and new, H hidden width, V vocabulary rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from glmkit.adapters.prefix.encoder import PrefixEncoder
from glmkit.errors import MismatchWarning, RequestError
from glmkit.families.common.layout import RemoteCode
from glmkit.model import GLM
from glmkit.model.parameters import init_weights
from glmkit.quant import quantize_modules

from .body_view import BodyView
from .chat_calls import ChatCalls
from .configuration import ChatGLMConfig, GLMConfig, GLMKitConfig, Meaning, PublishedConfig
from .generation import PREFIX_STEP, BlankGeneration
from .loading_calls import LoadingCalls
from .model_inputs import label_loss, read_inputs
from .past_keys import CACHE_NAME, WRITTEN, PassCache, PublishedCache, one_cache
from .published_integers import quantize_tree
from .published_tree import publish

_BLOCKS = ("GLMBlock", "PreNormBlock", "DeepNormBlock", "SandwichBlock")


class GLMPreTrainedModel(LoadingCalls, PreTrainedModel):  # type: ignore[misc]
    """A model of the core as transformers' tools expect one.

    core: the model of glmkit; its modules are this one's, under the published names. meaning: what the config says.
    """

    config_class = PublishedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = _BLOCKS
    _skip_keys_device_placement = ("past_key_values", "cache")
    core: GLM
    meaning: Meaning

    def __init__(self, config: PublishedConfig, *, meaning: Meaning | None = None) -> None:
        """Build the modules, with first weights unless it is on the meta device.

        meaning: known already, of a checkpoint. Raises ConfigError for a config that says none.
        """
        super().__init__(config)
        meaning = config.meaning if meaning is None else meaning
        core = GLM(meaning.config)
        if not core.model.norm_weight.is_meta:
            init_weights(core, meaning.config, int(torch.randint(1 << 31, ())))
        remote, quantization = meaning.layout.remote, meaning.config.quantization
        if quantization is not None and remote is None:
            quantize_modules(core, quantization)
        self.names = publish(core, meaning.layout)
        if quantization is not None and remote is not None:
            tables = [self.names.top["embed_tokens"]] if quantization.embeddings else []
            quantize_tree(core.model, quantization, tables)
        # Not as children: the body is the child, and everything has one name.
        self.__dict__.update(core=core, meaning=meaning, remote=remote or RemoteCode(sequence_first=False))
        setattr(self, self.names.body, core.model)
        self._place_head(core)
        if config.pre_seq_len:
            self._place_prefix(config)
        self.post_init()

    def _place_head(self, core: GLM) -> None:
        """Put the head where the published code has it; a tied one shares the matrix of the word table."""
        path, table = self.names.head, core.model.embed_tokens
        self._tied_weights_keys = None
        head = core.lm_head
        if head is None and path is not None and isinstance(table, nn.Embedding):
            rows, width = table.weight.shape
            head = nn.Linear(width, rows, bias=False, device="meta")
            head.weight = table.weight
            self._tied_weights_keys = {f"{path}.weight": f"{self.names.body}.{self.names.top['embed_tokens']}.weight"}
            self.config.tie_word_embeddings = True
        if head is None:
            self.names = replace(self.names, head=None)
        else:
            assert path is not None
            outer, _, leaf = path.rpartition(".")
            self.get_submodule(outer)._modules[leaf] = head

    def _place_prefix(self, config: PublishedConfig) -> None:
        """Put an untrained prefix of P-Tuning v2 where the published code has it."""
        encoder = PrefixEncoder(
            self.meaning.config, config.pre_seq_len, projection=bool(config.prefix_projection), dtype=self.core.dtype
        )
        self.set_prefix(encoder)
        self.__dict__["_first_prefix"] = _versions(encoder)

    def set_prefix(self, encoder: nn.Module) -> None:
        """Put a prefix encoder in front of every text."""
        self.body.prefix_encoder = encoder

    def warn_untrained(self) -> None:
        """Warn, once, when the prefix in front of every text has the random numbers that it was made with."""
        first = self.__dict__.pop("_first_prefix", None)
        if first and first == _versions(self.body.get_submodule("prefix_encoder")):
            warnings.warn(
                f"the prefix (pre_seq_len={self.config.pre_seq_len}) was neither loaded nor trained: random numbers "
                "stand in front of every text; load it with transformer.prefix_encoder.load_state_dict(...)",
                MismatchWarning,
                stacklevel=4,
            )

    # --- parts --------------------------------------------------------------------------------------------------------

    @property
    def body(self) -> nn.Module:
        """The module that holds everything but some heads: `transformer`, `glm` or `model`."""
        return getattr(self, self.names.body)  # type: ignore[no-any-return]

    @property
    def base_model(self) -> BodyView:
        """The model below its head, as tools of transformers call it."""
        return BodyView(self)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in; scales of integers have their own."""
        return self.core.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.body.get_submodule(self.names.top["embed_tokens"])

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word table."""
        outer, _, leaf = self.names.top["embed_tokens"].rpartition(".")
        setattr(self.body.get_submodule(outer), leaf, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, None where the word table is the head."""
        return None if self.names.head is None else self.get_submodule(self.names.head)

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        if self.names.head is None:
            raise RequestError("this model's head is its word table", step="call set_input_embeddings")
        outer, _, leaf = self.names.head.rpartition(".")
        setattr(self.get_submodule(outer), leaf, value)
        if self.core.lm_head is not None:
            self.core.lm_head = value  # type: ignore[assignment]

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) of final hidden states (...,H), by the module that stands at the head's place."""
        head = self.get_output_embeddings()
        logits: Tensor = self.core.head(hidden) if head is None else head(hidden)
        return logits

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: first weights are drawn when the modules are made, and read ones are not drawn again."""

    # --- passes -------------------------------------------------------------------------------------------------------

    def states(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
        inputs_embeds: Tensor | None,
        every_layer: list[Tensor] | None,
    ) -> Tensor:
        """(B,T,H) final hidden states."""
        encoder = getattr(self.body, "prefix_encoder", None)
        if encoder is not self.core.prefix:
            self.core.prefix = encoder
        ids_BT = self._ids(input_ids, inputs_embeds)
        past = 0 if cache is None else int(cache.get_seq_length())
        self._check_past(cache, past, position_ids)
        given = read_inputs(
            ids_BT, position_ids, attention_mask, past=past, config=self.core.config, remote=self.remote
        )
        held = None
        if cache is not None:
            batch, new = ids_BT.shape
            held = PassCache(cache, self.core, batch, new, given.real_BS)
        return self.core.hidden(
            ids_BT,
            position_ids=given.position_ids,
            prefix_length=given.prefix_length,
            attention_mask=given.mask,
            cache=held,
            every_layer=every_layer,
            words_BTH=inputs_embeds,
        )

    def _ids(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is not None:
            return input_ids
        if inputs_embeds is None:
            raise RequestError("neither input_ids nor inputs_embeds were given", param="input_ids")
        if self.core.config.mask == "prefix":
            raise RequestError(
                "inputs_embeds alone do not say which tokens see each other in this model",
                step="give input_ids as well: they make masks and positions, and the embeddings are used",
                param="input_ids",
            )
        return torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)

    def _check_past(self, cache: Cache | None, past: int, position_ids: Tensor | None) -> None:
        """Refuse keys of others in front of a text: PEFT's prefixes, whose positions nothing says."""
        if past == 0 or position_ids is not None:
            return
        if self.core.config.mask == "prefix":
            raise RequestError(
                f"{past} keys and values are cached, and nothing says where the new tokens stand",
                step=f"give position_ids (B,2,T); for a prefix that PEFT learns {PREFIX_STEP}",
                param="position_ids",
            )
        if not getattr(cache, WRITTEN, False):
            raise RequestError(
                f"{past} keys and values are cached that this model did not compute, as PEFT's prefix tuning does",
                step=f"{PREFIX_STEP}; or give position_ids",
                param="past_key_values",
                code="learned_prompt",
            )

    def new_cache(self) -> Cache:
        """An empty cache, as calls make it by themselves."""
        return PublishedCache(sequence_first=self.remote.sequence_first)

    def shown_states(self, every_layer: Sequence[Tensor], last_BTH: Tensor) -> tuple[Tensor, ...]:
        """Hidden states as published: what goes into each block, and the last one after the final norm."""
        states = (*every_layer[:-1], last_BTH)
        first = self.config.sequence_first
        if self.remote.sequence_first if first is None else first:
            return tuple(state.transpose(0, 1) for state in states)
        return states


def _versions(encoder: nn.Module) -> list[tuple[int, int]]:
    """Something that changes with every parameter that is exchanged or written to."""
    return [(id(parameter), parameter._version) for parameter in encoder.parameters()]


class CausalModel(ChatCalls, BlankGeneration, GLMPreTrainedModel):
    """A model with its head over the vocabulary, for training and generation."""

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
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Logits (B,T,V), with labels the loss, with `use_cache` the cache, on request hidden states.

        Masks and positions: see `model_inputs.read_inputs`; what is not given is read from the ids. labels (B,T): -100
        does not count; they are shifted here where the published code does so. The loss is taken in float32 and given
        in the model's dtype. past_key_values and cache are two names of one thing. logits_to_keep: the last so many
        columns, 0 = all, or their numbers. Raises RequestError for what contradicts or does not fit.
        """
        if output_attentions:
            raise RequestError("attention weights are never made here", step="leave it out", param="output_attentions")
        known = one_cache(past_key_values, cache)
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training and labels is None
        if use_cache and known is None:
            known = self.new_cache()
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        every_layer: list[Tensor] | None = [] if output_hidden_states else None
        hidden_BTH = self.states(input_ids, position_ids, attention_mask, known, inputs_embeds, every_layer)
        kept = hidden_BTH
        if not isinstance(logits_to_keep, int):
            kept = hidden_BTH[:, logits_to_keep]
        elif logits_to_keep:
            kept = hidden_BTH[:, -logits_to_keep:]
        logits = self.logits_of(kept)
        loss = None
        if labels is not None:
            loss = label_loss(logits, labels, shifts=self.remote.shifts_labels).to(hidden_BTH.dtype)
        shown = None if every_layer is None else self.shown_states(every_layer, hidden_BTH)
        if return_dict is None:
            return_dict = bool(self.config.return_dict)
        if not return_dict:
            return tuple(part for part in (loss, logits, known, shown) if part is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=shown, **{CACHE_NAME: known})


class ChatGLMForConditionalGeneration(CausalModel):
    """ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B with the names of its remote code; the config says which."""

    config_class = ChatGLMConfig


class GLMForConditionalGeneration(CausalModel):
    """GLM (2022): blanks are filled after the text, by `tokenizer.build_inputs_for_generation`."""

    config_class = GLMConfig


class GLMKitForConditionalGeneration(CausalModel):
    """A model of any family in glmkit's own format."""

    config_class = GLMKitConfig

"""`generate` with prefix masks and two position rows: what each step is given, and what is refused.

Legend: B batch, L tokens of the prompt, M cached tokens, T new tokens of a step, S = M + T.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationMixin

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.model.positions import infer_prefix
from glmkit.position_rows import PositionRows

from .model_inputs import read_inputs
from .past_keys import one_cache

_NOT_HERE = "transformers' own {} attends as a causal model does, by its own masks and positions"
_ENGINE_STEP = "use glmkit.load(...).answers or glm serve, which batch requests continuously"
PREFIX_STEP = "use P-Tuning v2 (pre_seq_len in the config, or glm finetune) or LoRA"
_PLAIN_STEP = "leave it out; glmkit.load(...) guesses ahead by itself"


class BlankGeneration(GenerationMixin):  # type: ignore[misc]
    """Mixin of `generate` and its steps."""

    @classmethod
    def can_generate(cls) -> bool:
        """True."""
        return True

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *arguments: Any, **options: Any) -> Any:
        """Continue prompts as transformers' `generate`, with the masks and positions of the model.

        Masks (B,1,L,L) and positions (B,2,L) are taken as well, and longer ones, as
        `tokenizer.build_inputs_for_generation` makes them (`generation_attention_mask`), which say where each new token
        stands. Raises RequestError for ways of decoding that a prefix model cannot go.
        """
        _refuse_ways(options)
        if getattr(self.prepare_inputs_for_generation, "__self__", self) is not self:  # how PEFT puts prompts in front
            raise RequestError(
                "prompts that PEFT learns stand in front of the text, where this model's masks and positions begin",
                step=PREFIX_STEP,
                code="learned_prompt",
            )
        self.warn_untrained()
        ids = options.get("input_ids") if inputs is None else inputs
        if isinstance(ids, Tensor) and ids.dim() == 2:
            options.setdefault("prompt_length", ids.shape[1])
            self._keep_prompt(ids, options)
        return super().generate(inputs, *arguments, **options)

    def _keep_prompt(self, ids_BL: Tensor, options: dict[str, Any]) -> None:
        """Put masks and positions of a form that transformers would misread where the steps find them."""
        given = options.pop("generation_attention_mask", None)
        mask, positions = options.get("attention_mask"), options.get("position_ids")
        if given is not None:
            mask = options["attention_mask"] = given
        if isinstance(mask, Tensor) and mask.dim() != 2:
            del options["attention_mask"]
            options["prompt_mask"] = self._whole_mask(ids_BL, mask)
            options["attention_mask"] = torch.ones_like(ids_BL)
        if isinstance(positions, Tensor):
            del options["position_ids"]
            if positions.dim() == 3:
                options["prompt_positions"] = positions

    def _whole_mask(self, ids_BL: Tensor, mask: Tensor) -> Tensor:
        """(B,1,L',L') True = seen, L' >= L columns of prompt and answer."""
        batch, length = ids_BL.shape
        if mask.dim() == 4 and mask.shape[-1] > length:
            ids_BL = functional.pad(ids_BL, (0, mask.shape[-1] - length))
        config: GLMConfig = self.core.config
        remote = self.remote
        some = torch.zeros(batch, 1, dtype=torch.long, device=ids_BL.device)
        read = read_inputs(ids_BL, some.expand(ids_BL.shape), mask, past=0, config=config, remote=remote)
        if read.mask is None:
            raise RequestError("a length of part A is not taken here", step="leave it out", param="attention_mask")
        return read.mask

    def generate_batch(self, *arguments: Any, **options: Any) -> Any:
        """Refuse transformers' continuous batching."""
        raise RequestError(_NOT_HERE.format("continuous batching"), step=_ENGINE_STEP)

    def init_continuous_batching(self, *arguments: Any, **options: Any) -> Any:
        """Refuse transformers' continuous batching."""
        raise RequestError(_NOT_HERE.format("continuous batching"), step=_ENGINE_STEP)

    def continuous_batching_context_manager(self, *arguments: Any, **options: Any) -> Any:
        """Refuse transformers' continuous batching."""
        raise RequestError(_NOT_HERE.format("continuous batching"), step=_ENGINE_STEP)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prompt_length: int | None = None,
        prompt_mask: Tensor | None = None,
        prompt_positions: Tensor | None = None,
        is_first_iteration: bool = False,
        is_first_forward: bool = True,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of the next call: the tokens that are not cached, where they stand and what they see.

        prompt_length: L. prompt_mask (B,1,L',L'), prompt_positions (B,2,L'): those of the prompt, and of the answer as
        far as they reach. is_first_forward: False in later steps of published loops, which give no
        next_sequence_length. kwargs: by this name transformers lets all arguments of `forward` through.

        Raises RequestError when tokens were left out that no cache holds: transformers would have
        to pass its cache by a name that is not known here.
        """
        known = one_cache(past_key_values, cache)
        past = 0 if known is None else int(known.get_seq_length())
        if inputs_embeds is not None and past == 0:
            if input_ids.shape[1]:
                raise RequestError("generate takes inputs_embeds without input_ids", param="inputs_embeds")
            return {
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "cache": known,
                "use_cache": use_cache,
            }
        new = next_sequence_length
        if new is None:
            new = input_ids.shape[1] - past if is_first_forward or not past else 1
            new = new if new > 0 else input_ids.shape[1]
        if past == 0 and new < input_ids.shape[1]:
            raise RequestError(
                f"a step of {new} token(s) without a cache, after {input_ids.shape[1] - new}",
                step="this version of transformers passes its cache in another way; install one that glmkit[hf] names",
                code="no_cache",
            )
        whole = past + new
        ids_BT = input_ids[:, -new:]
        if attention_mask is not None and attention_mask.dim() == 2 and attention_mask.shape[1] < whole:
            attention_mask = None if past else attention_mask
        mask = attention_mask
        if prompt_mask is not None:
            mask = _mask_of_step(prompt_mask, prompt_length or input_ids.shape[1], past, whole)
            if self.remote.hidden_masks:
                mask = ~mask
        config: GLMConfig = self.core.config
        if prompt_positions is not None:
            positions = _positions_of_step(prompt_positions, past, whole)
        elif config.mask == "causal" or input_ids.shape[1] < whole:
            positions = _counted(attention_mask, len(input_ids), past, whole, input_ids.device)
        else:
            prompt = input_ids[:, : prompt_length or input_ids.shape[1]]
            real = None if attention_mask is None or attention_mask.dim() != 2 else attention_mask
            positions = _inferred(prompt, real, past, whole, config)
        step: dict[str, Any] = {
            "input_ids": ids_BT,
            "position_ids": positions,
            "attention_mask": mask,
            "cache": known,
            "use_cache": use_cache,
        }
        if logits_to_keep is not None:
            step["logits_to_keep"] = logits_to_keep
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                step[name] = kwargs[name]
        return step

    def _get_logits_processor(self, generation_config: Any, *arguments: Any, **options: Any) -> Any:
        """transformers' processors, also for copies of published loops, which do not prepare the config for them."""
        if not hasattr(generation_config, "_eos_token_tensor"):
            defaults: dict[str, Any] = getattr(generation_config, "_get_default_generation_params", dict)()
            generation_config.update(**defaults, defaults_only=True)
            self._prepare_special_tokens(generation_config, True, device=self.device)
        return super()._get_logits_processor(generation_config, *arguments, **options)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: Mapping[str, Any]) -> None:
        """Leave positions to the steps."""

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **options: Any) -> Any:
        """Let the 2-D mask grow, and see to it that the cache of the call goes on."""
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **options)
        updated["is_first_forward"] = False
        used = one_cache(getattr(outputs, "past_key_values", None), getattr(outputs, "cache", None))
        kept = one_cache(updated.get("past_key_values"), updated.get("cache"))
        if used is not kept:
            raise RequestError(
                "the cache of a step is not passed to the next one",
                step="install a version of transformers that glmkit[hf] names",
                code="no_cache",
            )
        return updated


def _refuse_ways(options: Mapping[str, Any]) -> None:
    config = options.get("generation_config")

    def asked(name: str) -> Any:
        value = options.get(name)
        return getattr(config, name, None) if value is None else value

    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if asked(name):
            raise RequestError(
                f"{name}: candidates of transformers would stand at the wrong positions", step=_PLAIN_STEP, param=name
            )
    if asked("cache_implementation") == "paged":
        raise RequestError(_NOT_HERE.format("paged cache"), step=_ENGINE_STEP, param="cache_implementation")
    if asked("prefill_chunk_size"):
        raise RequestError(
            "a part A that is read in chunks does not see itself whole", step="leave it out", param="prefill_chunk_size"
        )


def _mask_of_step(prompt_mask: Tensor, length: int, past: int, whole: int) -> Tensor:
    """(B,1,T,S): rows of the mask as far as it reaches; beyond a prompt's own mask, what its last row sees and more."""
    reach = prompt_mask.shape[-1]
    if whole <= reach:
        return prompt_mask[:, :, past:whole, :whole]
    if reach > length:
        raise RequestError(
            f"the mask has {reach} columns, and token {whole} is asked for",
            step="give build_inputs_for_generation a larger max_gen_length, or ask for fewer new tokens",
            param="generation_attention_mask",
        )
    last = prompt_mask[:, :, -1:].expand(-1, -1, whole - reach, -1)
    own = torch.ones(whole - reach, whole - reach, dtype=torch.bool, device=prompt_mask.device).tril()
    below = torch.cat([last, own.expand(len(prompt_mask), 1, -1, -1)], -1)
    if past >= reach:
        return below[:, :, past - reach :]
    above = functional.pad(prompt_mask[:, :, past:], (0, whole - reach), value=False)
    return torch.cat([above, below], 2)


def _positions_of_step(positions_B2L: Tensor, past: int, whole: int) -> Tensor:
    """(B,2,T): columns as far as they reach; beyond them row 0 stays and row 1 counts on."""
    reach = positions_B2L.shape[-1]
    if whole <= reach:
        return positions_B2L[..., past:whole]
    steps = torch.arange(1, whole - reach + 1, device=positions_B2L.device)
    last = positions_B2L[..., -1:].expand(-1, -1, len(steps)).clone()
    last[:, 1] += steps
    return torch.cat([positions_B2L, last], -1)[..., past:]


def _counted(mask: Tensor | None, batch: int, past: int, whole: int, device: torch.device) -> Tensor:
    """(B,T): the number of real tokens before each."""
    if mask is None or mask.dim() != 2:
        return torch.arange(past, whole, device=device).expand(batch, -1)
    return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:whole]


def _inferred(prompt_BL: Tensor, real_BS: Tensor | None, past: int, whole: int, config: GLMConfig) -> Tensor:
    """(B,2,T): where the core puts tokens `past` to before `whole` of these prompts' rows; padding in front is 0."""
    length = prompt_BL.shape[1]
    real_BL = None if real_BS is None else real_BS[:, :length] != 0
    starts = [0] * len(prompt_BL) if real_BL is None else real_BL.int().argmax(1).tolist()
    part_a_B = infer_prefix(prompt_BL, config.special, real_BL).tolist()
    rows = []
    for ids, start, part_a in zip(prompt_BL.tolist(), starts, part_a_B, strict=True):
        own = PositionRows.of(ids[start:], max(0, part_a - start), config)
        filled = max(0, min(start, whole) - past)
        rows.append([[0] * filled + row for row in own.at(max(past - start, 0), max(whole - start, 0))])
    return torch.tensor(rows, dtype=torch.long, device=prompt_BL.device)

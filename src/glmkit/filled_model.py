"""A model without memory, and one with the tensors of a checkpoint."""

import torch

from .checkpoint.materialize import fetch, fetch_panels, in_parallel, refuse_bad
from .checkpoint.open import Checkpoint
from .config import GLMConfig
from .model import GLM
from .quant import quantize_modules
from .quant.rounding import matrix_form

_MOST_MADE = 2  # matrices made at a time


def empty_model(config: GLMConfig) -> GLM:
    """A model without memory (on the meta device), with quantised layers where the config has them."""
    with torch.device("meta"):
        model = GLM(config)
        if config.quantization is not None:
            quantize_modules(model, config.quantization)
    return model


def filled_model(checkpoint: Checkpoint, config: GLMConfig, dtype: torch.dtype | None, device: torch.device) -> GLM:
    """The model with its tensors, read one by one; matrices that the config has quantised become panels on the way."""
    model, weights, bad = empty_model(config), checkpoint.weights, dict[str, None]()
    wanted = model.state_dict().keys()
    stems = [name.removesuffix(".row_scale") for name in wanted if name.endswith(".row_scale")]
    forms = {stem: form for stem in stems if (form := matrix_form(config.quantization, stem)) is not None}
    floats = [name for name in wanted if name.rpartition(".")[0] not in forms or name.endswith(".bias")]

    def read(name: str) -> dict[str, torch.Tensor]:
        if name in forms:
            return fetch_panels(weights, name, forms[name], device, bad)
        return {name: fetch(weights, name, dtype, device, bad)}

    # Panels that are made here take memory beside the pages that are read, so no more than two at a time.
    made = in_parallel(read, forms, _MOST_MADE) + in_parallel(read, floats)
    refuse_bad({name: weights.stored_name(name) for name in bad}, str(checkpoint.directory))
    model.load_state_dict({name: tensor for found in made for name, tensor in found.items()}, strict=True, assign=True)
    return model.eval()

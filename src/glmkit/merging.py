"""An adapter into its base: merged, written as one model in any layout, opened again and compared before it is there.

Legend: B batch, T tokens, V vocabulary rows.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .adapters.attach import adapter_off, find_attached, merge_adapter
from .checkpoint.conversion.conversion import DTYPES, convert
from .checkpoint.conversion.outputs import carried_files
from .checkpoint.native import GENERATION_FILE, read_json, write_json, write_model
from .checkpoint.open import Checkpoint, open_checkpoint
from .checkpoint.taught import TAUGHT_FILE, write_taught
from .config import Quantization
from .errors import CheckpointError, RequestError
from .families.common.native_layout import OWN
from .files import atomic_directory
from .loading import BITS, Parts, Quantize, load_parts, stored_dtype
from .model import GLM
from .quant import dequantize_modules, quantize_modules

# Share of the largest logit that the order of float32's sums explains in a small model; it grows with the root of depth
# and width. What adapters of usual size give is below a quarter of it.
CLOSE = 4e-5
LEAST_LEFT = 0.05  # share of an adapter's effect below which none is left
GENERATION_CONFIG = "generation_config.json"
_ROWS, _LENGTH = 4, 24  # of the ids whose logits are compared


@dataclass(frozen=True)
class MergeReport:
    """Report of a merge. dtype: of the floats that were written. bits: of the integers, None without.

    effect: the largest change of a logit by the adapter. left: the share of its effect on the logits that rounding, or
    quantising, has left. difference: the largest between the logits of what was written and of base and adapter.
    """

    directory: str
    base: str
    adapter: str
    layout: str
    dtype: str
    bits: int | None
    effect: float
    left: float
    difference: float
    stop_ids: tuple[int, ...]
    carried: tuple[str, ...]
    notes: tuple[str, ...]


def merge(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None,
    directory: str | os.PathLike[str],
    *,
    layout: str = OWN.name,
    dtype: str | None = None,
    quantize: Quantize | None = None,
    alpha: float | None = None,
    family: str | None = None,
    hub: str | None = None,
) -> MergeReport:
    """Merge a LoRA into its base and write both as one model, with tokenizer, stop ids and licence files.

    adapter: None where `base` is the run of one. layout: a name of `glm convert`. dtype: of the floats, None as the
    base stores them; integers of a quantised base become floats. quantize: the result, anew.

    Before `directory` appears, it is opened again: its logits are those of base and adapter (in float32,
    but for what rounding to `dtype` or integers changes, which is measured). Raises CheckpointError,
    RequestError (a prefix, an adapter without effect, or without any left), FileExistsError; then nothing is written.
    """
    load = partial(load_parts, device="cpu", dtype="float32", hub=hub)
    with atomic_directory(directory) as folder:
        parts = load(base, adapter=adapter, alpha=alpha, family=family)
        found, name = find_attached(parts.model), str(adapter or base)
        if found is None:
            step = "give the base and the adapter's directory"
            raise RequestError(f"{base} is a model without adapter", step=step, param="adapter")
        _check_layout(parts, layout)
        checkpoint = open_checkpoint(parts.directory, family=family)
        chosen = DTYPES[dtype] if dtype else stored_dtype(checkpoint)
        ids_BT, old = _some_ids(parts, [*found.new_tokens.values()]), parts.config.quantization
        quantization = None
        if quantize is not None:
            quantization = _form(BITS[quantize], old, layout)
        with_adapter_BTV = _logits(parts.model, ids_BT)
        with adapter_off(parts.model):
            effect_BTV = with_adapter_BTV - _logits(parts.model, ids_BT)
        if not effect_BTV.any():
            raise RequestError(f"{name} changes no logit: there is nothing to merge", param="adapter", code="no_effect")
        dequantize_modules(parts.model, torch.float32)
        merge_adapter(parts.model)
        _require_close(_logits(parts.model, ids_BT), with_adapter_BTV, parts, "the merged weights")
        written_BTV = _logits(_rounded(parts.model, chosen, quantization), ids_BT)
        plain = load(parts.directory, family=family).model
        dequantize_modules(plain, torch.float32)
        change_BTV = written_BTV - _logits(_rounded(plain, chosen, quantization), ids_BT)
        del plain
        left = float((change_BTV * effect_BTV).sum() / effect_BTV.square().sum())
        if left < LEAST_LEFT:
            raise RequestError(
                f"{name} has no effect left in {quantize or str(chosen).removeprefix('torch.')}: of its change of the "
                f"logits {100 * left:.1f} % remain after rounding",
                step="merge without --quantize, or keep the adapter beside the quantised base",
                param="quantize",
                code="no_effect",
            )
        parts = replace(parts, config=replace(parts.config, quantization=quantization))
        carried = _write(parts, checkpoint, folder, layout, chosen)
        title = parts.family.name if parts.family else None
        again = load(folder, family=title)
        _require_close(_logits(again.model, ids_BT), written_BTV, parts, f"what was written in the {layout} layout")
        if lost := set(parts.taught.stop_ids) - set(again.generation.stop_ids):
            raise CheckpointError(
                f"the {layout} layout has lost the stop ids {sorted(lost)}", step="use another layout"
            )
        for file in checkpoint.files:
            file.close()
    return MergeReport(
        directory=str(directory),
        base=str(parts.directory),
        adapter=name,
        layout=layout,
        dtype=str(chosen).removeprefix("torch."),
        bits=None if quantization is None else quantization.bits,
        effect=float(effect_BTV.abs().max()),
        left=left,
        difference=float((written_BTV - with_adapter_BTV).abs().max()),
        stop_ids=parts.generation.stop_ids,
        carried=tuple(carried),
        notes=tuple(parts.notes),
    )


def _form(bits: int, old: Quantization | None, layout: str) -> Quantization:
    """The form of the result: the base's own where it has these bits, else the usual one that the layout can hold."""
    if old is not None and old.bits == bits:
        return old
    tables = old is not None and old.embeddings
    return Quantization.usual(bits) if layout == OWN.name else Quantization(bits, tables, packing="panels")


def _rounded(model: GLM, dtype: torch.dtype, quantization: Quantization | None) -> GLM:
    """The model itself with its numbers rounded to `dtype`, and to integers, computing in float32."""
    model.to(dtype).float()
    if quantization is not None:
        quantize_modules(model, quantization)
    return model


def _write(parts: Parts, checkpoint: Checkpoint, folder: Path, layout: str, dtype: torch.dtype) -> list[str]:
    """Fill a directory with the model in a layout; names of the base's files that were copied."""
    small = {
        name: path
        for name, path in carried_files(checkpoint.directory, checkpoint.family).items()
        if name not in (GENERATION_FILE, GENERATION_CONFIG, TAUGHT_FILE)
    }
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as work:
        own = folder if layout == OWN.name else Path(work) / OWN.name
        own.mkdir(exist_ok=True)
        for name, path in small.items():
            shutil.copyfile(path, own / name)
        if parts.tokenizer is not None:
            parts.tokenizer.save(own)
        state = {
            name: value.to(dtype) if value.is_floating_point() and not name.endswith("_scale") else value
            for name, value in parts.model.named_parameters()
        }
        write_model(own, parts.config, state, generation=parts.generation)
        if own is not folder:
            made = Path(work) / layout
            convert(own, made, to=layout)
            (made / GENERATION_FILE).unlink(missing_ok=True)
            _write_generation_config(made, checkpoint.directory, parts)
            for path in made.iterdir():
                path.rename(folder / path.name)
    write_taught(folder, parts.taught)
    return sorted(small)


def _write_generation_config(folder: Path, base: Path, parts: Parts) -> None:
    """The base's published settings of generation, where it has some, with the ids that end an answer now."""
    published = base / GENERATION_CONFIG
    settings = read_json(published) if published.is_file() else {}
    if parts.generation.stop_ids:
        stops = [*parts.generation.stop_ids]
        settings["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if settings:
        write_json(folder / GENERATION_CONFIG, settings)


def _check_layout(parts: Parts, layout: str) -> None:
    known = [OWN.name, *(each.name for each in parts.family.layouts)] if parts.family else [OWN.name]
    if layout not in known:
        raise RequestError(
            f"{parts.config.family} has no {layout!r} layout", step=f"choose one of {', '.join(known)}", param="layout"
        )


def _some_ids(parts: Parts, new_tokens: Sequence[int]) -> Tensor:
    """Ids (B,T) drawn from the whole vocabulary, with a prompt's end in the middle and every token that is new."""
    config, special = parts.config, parts.config.special
    roles = set() if special is None else {index for index in vars(special).values() if index is not None}
    plain = torch.tensor([index for index in range(config.vocab_size) if index not in roles])
    draw = torch.randint(len(plain), (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    ids_BT = plain[draw]
    for place, index in enumerate(new_tokens[: _ROWS * _LENGTH // 4]):
        ids_BT.view(-1)[4 * place] = index
    if special is not None and special.gmask is not None and special.sop is not None:
        ids_BT[:, _LENGTH // 2], ids_BT[:, _LENGTH // 2 + 1] = special.gmask, special.sop
    return ids_BT


@torch.no_grad()
def _logits(model: GLM, ids_BT: Tensor) -> Tensor:
    logits_BTV: Tensor = model(ids_BT)
    return logits_BTV


def _require_close(found_BTV: Tensor, expected_BTV: Tensor, parts: Parts, what: str) -> None:
    """Raise CheckpointError for logits that differ by more than the order of float32's sums explains."""
    config = parts.config
    depth = max(1.0, config.num_layers * config.hidden_size / 4096) ** 0.5
    limit = CLOSE * depth * max(1.0, float(expected_BTV.abs().max()))
    apart = float((found_BTV - expected_BTV).abs().max())
    if not apart <= limit:
        raise CheckpointError(
            f"{what} give logits that differ by {apart:.3g} from those of base and adapter (at most {limit:.3g} may)",
            step="nothing was written; report this with the names of base and adapter",
            code="unequal",
        )

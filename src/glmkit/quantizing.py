"""Quantising a model directory: matrix by matrix from the files of any layout to a new directory, in bounded memory."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .calibrating import Calibration
from .checkpoint.conversion.conversion import convert
from .checkpoint.conversion.outputs import carried_files
from .checkpoint.files.safetensors_file import safetensors_places
from .checkpoint.materialize import fetch, refuse_bad
from .checkpoint.native import CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE, write_json
from .checkpoint.open import Checkpoint, open_checkpoint
from .checkpoint.plain_names import adapter_words
from .checkpoint.run_directory import model_directory
from .checkpoint.weights import expected_tensors, matrix_shapes
from .config import GLMConfig, Quantization
from .data.packing import Batch
from .data.text_rows import text_batches
from .devices import CPU
from .errors import CheckpointError, RequestError, names_text
from .families.common.native_layout import NAME_KEY, OWN, own_values
from .files import atomic_directory
from .loading import read_tokenizer
from .quant.calibration import Method
from .quant.filling import round_matrix, row_blocks
from .quant.layers import panels_of
from .quant.rounding import MatrixForm, Rounding, matrix_form
from .small_files import read_small
from .streaming import StreamedModel

_CALIBRATED = 64  # windows of a calibration text
_MEASURED = 8  # windows of the text that losses are measured on
_LARGEST = 64 << 20  # bytes of a file that is copied
_WORK = ".work"  # folder of our own layout, on the way to another one

# Called with a label, the work done so far and all of it.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerError:
    """Distance of a layer's integer matrices (or of "tables") from the floats, relative to the floats' norm.

    outputs: that of the matrices' outputs on the calibration text, the root mean square over the matrices.
    """

    name: str
    relative: float
    outputs: float | None = None


@dataclass(frozen=True)
class QuantizeReport:
    """Report of a quantisation. Sizes in bytes; losses are mean cross-entropies on a text, None without one.

    method: how a calibration text was used. loss_nearest: of the same form rounded to the nearest, for comparison.
    """

    source: str
    destination: str
    family: str
    layout: str
    quantization: Quantization
    rounding: str
    method: str | None
    source_bytes: int
    bytes: int
    causal: bool
    errors: list[LayerError]
    loss_before: float | None = None
    loss_after: float | None = None
    loss_nearest: float | None = None
    notes: list[str] = field(default_factory=list)


def choose_form(
    bits: int,
    *,
    layout: str = OWN.name,
    group: int | None = None,
    scales: str | None = None,
    head_bits: int | None = None,
) -> Quantization:
    """The form that options ask for; what they leave open is usual, or what a published layout can hold.

    group: columns under a scale, 0 = a row, None = 32 for 4 bits in our own layout, else a row. head_bits: of word
    table and head, 16 = not quantised; None = 8 in our own layout, else 16. Raises ConfigError.
    """
    own = layout == OWN.name
    if group is None:
        group = Quantization.usual(bits).group_size if own and bits in (4, 8) else 0
    if scales is None:
        scales = "byte" if group and bits == 4 else "float16"
    head = head_bits if head_bits is not None else (8 if own else 16)
    if not own and (group or head not in (bits, 16)):
        raise RequestError(
            f"the {layout} layout holds one width and a scale per row",
            step="leave the options out, or write glmkit's own",
        )
    kept = None if head in (bits, 16) else head
    return Quantization(bits, head != 16, 1, group, scales, kept, "panels")  # type: ignore[arg-type]


def quantize(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    form: Quantization,
    *,
    layout: str = OWN.name,
    rounding: Rounding | None = None,
    calibration: str | None = None,
    method: Method | None = None,
    text: str | None = None,
    family: str | None = None,
    config: str | Path | GLMConfig | None = None,
    progress: Progress = lambda label, done, total: None,
) -> QuantizeReport:
    """Write the model in `source`, in any layout, to the new directory `destination` with integer matrices.

    layout: a name of `glm convert`. rounding: None = "searched" with a calibration text and for INT4 with more than
    32 columns a scale, else "nearest". calibration: a text; errors of columns then count by the mean square of their
    activations. method: what else is done with it, None = "gptq". text: to measure the loss on, before and after. One
    float layer is held at a time. `destination` appears when it is complete.
    Raises CheckpointError, ConfigError, RequestError, FileExistsError.
    """
    directory, remarks = model_directory(Path(source))
    checkpoint = open_checkpoint(directory, config=config, family=family)
    stored = checkpoint.config.quantization
    if stored is not None:
        raise CheckpointError(
            f"{source} has INT{stored.bits} weights already (a {checkpoint.layout.name} directory)",
            step="give the original floating-point weights; glm convert changes the layout of integers",
        )
    _check_layout(checkpoint, layout, directory, Path(destination))
    target = replace(checkpoint.config, quantization=form)
    if calibration is not None and rounding == "nearest":
        raise RequestError(
            "a calibration text changes nothing about nearest rounding", step="leave one out", param="calibrate"
        )
    if method is not None and calibration is None:
        raise RequestError(f"the method {method} needs a calibration text", step="give --calibrate", param="method")
    if rounding is None:
        coarse = form.bits == 4 and form.group_size not in range(1, 33)
        rounding = "searched" if calibration is not None or coarse else "nearest"
    tokenizer = None if calibration is None and text is None else read_tokenizer(checkpoint, directory, None)
    notes = [*remarks, *checkpoint.notes, *([] if checkpoint.guess is None else [checkpoint.guess])]
    if checkpoint.adapter:
        names, words = names_text(checkpoint.adapter, 2), adapter_words(checkpoint.adapter)
        notes.insert(0, f"what was written is the base alone; left out, {words}: {names}")
    measured: list[Batch] = []
    if tokenizer is not None and text is not None:
        measured = text_batches(tokenizer, checkpoint.config, text, _MEASURED, what="text")
    elif text is not None:
        notes.append("no loss was measured: the directory has no tokenizer")
    calibrated: Calibration | None = None
    if calibration is not None:
        if tokenizer is None:
            raise RequestError(f"{source} has no tokenizer for the calibration text", param="calibrate")
        batches = text_batches(tokenizer, checkpoint.config, calibration, _CALIBRATED, what="calibrate")
        method = method or "gptq"
        notes += _text_notes(batches, checkpoint, calibration, text, method)
        calibrated = Calibration(checkpoint, target, batches, method, rounding)
    with atomic_directory(destination) as folder:
        work = folder / _WORK  # within, so that what a killed run leaves is removed with its directory
        own = folder if layout == OWN.name else work / OWN.name
        own.mkdir(parents=True, exist_ok=True)
        errors = _write_weights(checkpoint, target, own / WEIGHTS_FILE, rounding, calibrated, progress, notes)
        _write_small(checkpoint, target, own)
        if own is not folder:
            made = work / layout
            convert(own, made, to=layout, family=checkpoint.family.name)
            for path in [*made.iterdir()]:
                path.rename(folder / path.name)
            shutil.rmtree(work)
        losses: list[float | None] = [None, None, None]
        if measured:
            written = open_checkpoint(folder, family=checkpoint.family.name)
            models = [(checkpoint, checkpoint.config), (written, written.config)]
            if calibrated is not None:
                models.append((checkpoint, target))
            for place, (one, own_config) in enumerate(models):
                progress("measuring the loss", place, len(models))
                losses[place] = StreamedModel.open(one, own_config).loss(measured)
            progress("measuring the loss", len(models), len(models))
            for file in written.files:
                file.close()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    before_bytes = sum(file.nbytes for file in checkpoint.files)
    for file in checkpoint.files:
        file.close()
    return QuantizeReport(
        str(source), str(destination), checkpoint.family.name, layout, form, rounding, method, before_bytes, size,
        target.mask == "causal", errors, losses[0], losses[1], losses[2], notes,
    )  # fmt: skip


def _check_layout(checkpoint: Checkpoint, layout: str, source: Path, destination: Path) -> None:
    known = [OWN.name, *(each.name for each in checkpoint.family.layouts if each.quantized)]
    if layout not in known:
        raise CheckpointError(
            f"{checkpoint.family.title} has no {layout!r} layout with integers",
            step=f"choose one of {', '.join(known)}",
        )
    before, after = source.resolve(), destination.resolve()
    if before == after or before in after.parents or after in before.parents:
        raise CheckpointError(
            f"{destination} and {source} are the same or one lies in the other", step="choose another place"
        )


def _text_notes(
    batches: list[Batch], checkpoint: Checkpoint, calibration: str, text: str | None, method: Method
) -> list[str]:
    """Remarks on a calibration text, and on what scaling changes."""
    notes, tokens, config = [], sum(batch.num_tokens for batch in batches), checkpoint.config
    if tokens < config.hidden_size:
        notes.append(
            f"the calibration text gives {tokens} tokens, fewer than the {config.hidden_size} columns of a row"
        )
    if text is not None and (text in calibration or calibration in text):
        notes.append("the loss is measured on the calibration text itself and says little; give another --text")
    if method.startswith("awq"):
        notes.append("inputs are scaled: adapters that were trained on the float model do not fit these weights")
    return notes


def _write_weights(
    checkpoint: Checkpoint,
    target: GLMConfig,
    path: Path,
    rounding: Rounding,
    calibrated: Calibration | None,
    progress: Progress,
    notes: list[str],
) -> list[LayerError]:
    """Put all tensors into their places, in the order of the model; returns the errors of each layer."""
    weights, bad = checkpoint.weights, dict[str, None]()
    shapes, infos = matrix_shapes(target), expected_tensors(target)
    infos |= {
        name: weights.info(name) for name in weights.names() if name in infos and infos[name].dtype.is_floating_point
    }
    total = sum(weights.info(name).nbytes for name in weights.names())
    squares: dict[str, list[float]] = {}
    outputs: dict[str, float] = {}
    done = 0
    with safetensors_places(path, infos) as put:
        for name in weights.names():
            stem = name.removesuffix(".weight")
            layer, number = _layer(stem), _number(stem)
            form = matrix_form(target.quantization, stem) if stem in shapes and stem != name else None
            progress(f"quantising {layer}", done, total)
            if calibrated is not None and number is not None:
                if layer not in squares:
                    made = calibrated.round(number)
                    squares[layer], outputs[layer] = made.weights, (sum(made.outputs) / len(made.outputs)) ** 0.5
                    notes += [f"{layer}: {note}" for note in made.notes]
                    for part, tensor in made.tensors.items():
                        put(f"model.layers.{number}.{part}", tensor)
            elif form is None:
                put(name, fetch(weights, name, None, CPU, bad))
            else:
                one = _Matrix(checkpoint, name)
                tensors = round_matrix(one.read, shapes[stem], form, rounding)
                sums = squares.setdefault(layer, [0.0, 0.0])
                for place, value in enumerate(one.compare(tensors, shapes[stem], form)):
                    sums[place] += value
                for part, tensor in tensors.items():
                    put(f"{stem}.{part}", tensor)
            weights.release(name)
            refuse_bad({each: weights.stored_name(each) for each in bad}, str(checkpoint.directory))
            done += weights.info(name).nbytes
        progress("quantising", total, total)
    return [
        LayerError(name, (wrong / max(whole, 1e-30)) ** 0.5, outputs.get(name))
        for name, (wrong, whole) in squares.items()
    ]


@dataclass(frozen=True)
class _Matrix:
    """Rows of one stored matrix. Raises CheckpointError with its name for NaN and infinite values."""

    checkpoint: Checkpoint
    name: str

    def read(self, start: int, end: int) -> Tensor:
        rows = self.checkpoint.weights.read_rows(self.name, start, end)
        if not bool(torch.isfinite(rows.sum(dtype=torch.float64))):
            stored = {self.name: self.checkpoint.weights.stored_name(self.name)}
            refuse_bad(stored, str(self.checkpoint.directory))
        return rows

    def compare(self, tensors: dict[str, Tensor], shape: tuple[int, int], form: MatrixForm) -> tuple[float, float]:
        """Sums of the squared differences and of the squared floats."""
        blocks, wrong, whole = panels_of(tensors, *shape, form), 0.0, 0.0
        for start, end in row_blocks(*shape):
            weight_RC = self.read(start, end).float()
            whole += float(weight_RC.square().sum(dtype=torch.float64))
            made_RC = torch.cat([block.floats(start, end) for block in blocks], 1)
            wrong += float(made_RC.sub_(weight_RC).square_().sum(dtype=torch.float64))
        return wrong, whole


def _number(stem: str) -> int | None:
    """Number of the layer that a module belongs to; None for tables and the last norm."""
    parts = stem.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def _layer(stem: str) -> str:
    number = _number(stem)
    return "tables" if number is None else f"layer {number}"


def _write_small(checkpoint: Checkpoint, target: GLMConfig, folder: Path) -> None:
    """Config, generation settings and what is carried along."""
    name = {} if checkpoint.name is None else {NAME_KEY: checkpoint.name}
    write_json(folder / CONFIG_FILE, {**own_values(target), **name})
    if settings := checkpoint.generation.to_dict():
        write_json(folder / GENERATION_FILE, settings)
    for file, path in carried_files(checkpoint.directory, checkpoint.family).items():
        if not (folder / file).exists():
            (folder / file).write_bytes(read_small(path, CheckpointError, limit=_LARGEST))

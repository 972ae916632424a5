"""Any published checkpoint to any layout of its family: streamed, resumable, read again when it is written."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from glmkit.checkpoint.detect import read_tag
from glmkit.checkpoint.materialize import one_thread
from glmkit.checkpoint.native import GENERATION_FILE
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.checkpoint.plain_names import adapter_words
from glmkit.checkpoint.published_tensors import published_tensors
from glmkit.checkpoint.run_directory import model_directory
from glmkit.checkpoint.weights import Weights
from glmkit.config import GLMConfig, Packing
from glmkit.errors import CheckpointError, names_text
from glmkit.families.common.layout import Extras, Layout
from glmkit.families.common.native_layout import NAME_KEY, OWN
from glmkit.families.judge import with_identity
from glmkit.files import atomic_write, inside
from glmkit.small_files import read_small

from .journal import Journal
from .outputs import KINDS, LARGEST, Outputs, WeightsFormat, carried_files, check_names, output_files, parse_size
from .repack import repacked
from .requantize import AddedError, Requantized, blocks_for
from .transfer import Progress, Step, write_files
from .verify import compare, config_changes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_SHARD = "5GB"
SPARE_BYTES = 64 << 20  # room for the small files


@dataclass(frozen=True)
class ConvertReport:
    """Report of a conversion. Sizes in bytes, times in seconds."""

    source: str
    destination: str
    family: str
    source_format: str
    format: str
    ranks: int
    dtypes: dict[str, int]  # bytes by dtype
    files: list[str]
    resumed: list[str]  # files that an earlier run had finished
    bytes: int
    write_seconds: float
    verify_seconds: float | None  # None: not verified
    tensors: int  # learned tensors, under our names
    causal: bool  # whether the model only continues texts
    recomputed: list[str] = field(default_factory=list)  # names of derived tensors
    duplicated: list[str] = field(default_factory=list)  # names of second copies
    carried: list[str] = field(default_factory=list)  # files copied as they are
    requantized: list[AddedError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@one_thread()
def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str,
    tensor_parallel: int | None = None,
    dtype: str | None = None,
    weights: WeightsFormat | None = None,
    shard_size: str | int | None = None,
    requantize: bool = False,
    config: str | Path | GLMConfig | None = None,
    family: str | None = None,
    verify: bool = True,
    restart: bool = False,
    progress: Progress = lambda step: None,
) -> ConvertReport:
    """Write the checkpoint in `source` to the new directory `destination` in the layout `to` of its family.

    tensor_parallel: rank files to write; None = as many as the source has when both are cut, else one. dtype: of all
    floating-point tensors (not of quantisation scales); None = as stored. weights and shard_size: kind and largest
    size of the files; None = safetensors of at most 5 GB for the Hugging Face formats, .pdparams for PaddlePaddle's,
    where safetensors make a unified checkpoint of PaddleNLP. requantize: allow what
    changes quantised integers.

    Work goes on in `destination` + ".partial", which becomes `destination` when everything is written and verified. A
    run that was killed goes on at its first unfinished file; with `restart` it begins again. Torch runs on one thread
    meanwhile (`torch.set_num_threads`). Raises CheckpointError, ConfigError.
    """
    before, after = _places(source, destination)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(
            f"dtype {dtype!r} is unknown", step=f"use {', '.join(DTYPES)}, or none to keep what is stored"
        )
    started = time.perf_counter()
    before, remarks = model_directory(before)
    checkpoint = open_checkpoint(before, config=config, family=family)
    checkpoint.notes.extend(remarks)
    layout = _layout(checkpoint, to)
    kind, shard_bytes = _files(layout, weights, shard_size)
    ranks = _ranks(checkpoint, layout, kind, tensor_parallel)
    stored, target, changed = _requantized(checkpoint, layout, ranks, requantize)
    tensors = published_tensors(
        layout,
        target,
        ranks,
        DTYPES[dtype] if dtype else None,
        weights=stored,
        bare=checkpoint.bare and layout is checkpoint.layout,
    )
    tag = _tag(checkpoint, layout)
    carried = carried_files(before, checkpoint.family)
    outputs = output_files(layout, tensors, weights=kind, shard_bytes=shard_bytes, tag=tag)

    work = after.with_name(f"{after.name}.partial")
    check_names(work, [file.name for file in outputs.files], [*outputs.small, *carried])
    journal = Journal(work)
    try:
        plan = {
            "source": str(before), "to": to, "tensor_parallel": ranks, "dtype": dtype, "weights": kind,
            "shard_size": shard_bytes, "requantize": requantize, "tag": tag, "config": target.to_dict(),
            "files": _fingerprint(checkpoint),
        }  # fmt: skip
        journal.begin(plan, restart=restart)
        _check_space(work, outputs, journal)
        resumed = write_files(outputs, stored, journal, progress)
        copied = _write_small(checkpoint, layout, target, ranks, outputs, work, dtype, carried)
        write_seconds = time.perf_counter() - started
        notes = [*checkpoint.notes, *([] if checkpoint.guess is None else [checkpoint.guess])]
        if checkpoint.adapter:
            names, words = names_text(checkpoint.adapter, 2), adapter_words(checkpoint.adapter)
            notes.insert(0, f"what was written is the base alone; left out, {words}: {names}")
        if requantize and changed is None:
            notes.append("nothing had to be requantised")
        verify_seconds = None
        if verify:
            started = time.perf_counter()
            notes += _verify(checkpoint, stored, target, work, outputs, progress)
            verify_seconds = time.perf_counter() - started
        if (
            not all(path.is_file() for file in checkpoint.files for path in file.paths)
            or _fingerprint(checkpoint) != plan["files"]
        ):
            raise CheckpointError(
                f"{before} changed while it was converted", step="run the same command with --restart"
            )
        journal.publish(after)
    except BaseException:
        journal.discard_if_empty()
        raise
    finally:
        journal.close()
    recomputed, duplicated = _unlearned(layout, target, outputs)
    return ConvertReport(
        source=str(before),
        destination=str(after),
        family=checkpoint.family.name,
        source_format=checkpoint.layout.name,
        format=layout.name,
        ranks=ranks,
        dtypes=_bytes_by_dtype(outputs),
        files=[file.name for file in outputs.files],
        resumed=resumed,
        bytes=outputs.nbytes,
        write_seconds=write_seconds,
        verify_seconds=verify_seconds,
        tensors=len(stored.names()),
        causal=checkpoint.config.mask == "causal",
        recomputed=recomputed,
        duplicated=duplicated,
        carried=copied,
        requantized=[] if changed is None else list(changed.errors.values()),
        notes=notes,
    )


def _places(source: str | Path, destination: str | Path) -> tuple[Path, Path]:
    if Path(destination).is_symlink():
        raise CheckpointError(f"{destination} is a link", step="choose another name or remove it")
    before, after = Path(source).resolve(), Path(destination).resolve()
    if not before.is_dir():
        raise CheckpointError(f"{source} is not a directory", step="give the directory of a checkpoint")
    if before == after or before in after.parents or after in before.parents:
        raise CheckpointError(
            f"{destination} and {source} are the same or one lies in the other", step="choose another place"
        )
    if after.exists():
        raise CheckpointError(f"{destination} exists", step="choose another name or remove it")
    if not after.parent.is_dir():
        raise CheckpointError(f"{after.parent} is not a directory", step="make it first")
    return before, after


def _layout(checkpoint: Checkpoint, name: str) -> Layout:
    family = checkpoint.family
    known = {layout.name: layout for layout in (OWN, *family.layouts)}
    if name not in known:
        raise CheckpointError(f"{family.title} has no {name!r} layout", step=f"choose one of {', '.join(known)}")
    layout = known[name]
    if checkpoint.config.quantization is not None and not layout.quantized:
        able = ", ".join(name for name, layout in known.items() if layout.quantized)
        raise CheckpointError(f"the {name} layout never held quantised weights", step=f"choose one of {able}")
    return layout


def _files(
    layout: Layout, weights: WeightsFormat | None, shard_size: str | int | None
) -> tuple[WeightsFormat | None, int]:
    """Kind and largest size of files; where a layout leaves no choice, neither may be asked for."""
    if weights is not None and weights not in get_args(WeightsFormat):
        raise CheckpointError(
            f"weights {weights!r} is no kind of file", step=f"use {' or '.join(get_args(WeightsFormat))}"
        )
    kinds = ("safetensors",) if layout is OWN else KINDS[layout.container]
    kind = weights or next(iter(kinds), None)
    one_a_rank = kind in (None, "pdparams")
    for value, option in ((weights, "--weights"), (shard_size, "--shard-size")):
        if value is not None and (not kinds or (one_a_rank and option == "--shard-size")):
            raise CheckpointError(
                f"the {layout.name} layout has one file a rank; {option} {value} means nothing here",
                step="leave it out" if len(kinds) < 2 else f"leave it out, or add --weights {kinds[1]}",
            )
    if weights is not None and weights not in kinds:
        raise CheckpointError(
            f"the {layout.name} layout has {' or '.join(kinds)} only",
            step=f"leave out --weights, or give one of {', '.join(kinds)}",
        )
    return kind, parse_size(DEFAULT_SHARD if shard_size is None else shard_size)


def _ranks(checkpoint: Checkpoint, layout: Layout, kind: WeightsFormat | None, asked: int | None) -> int:
    whole = kind in ("safetensors", "bin")  # shards, each tensor whole in one of them
    if asked is None:
        return checkpoint.ranks if layout.parallel and checkpoint.layout.parallel and not whole else 1
    if asked > 1 and whole and layout.parallel:
        raise CheckpointError(
            f"{kind} files of the {layout.name} layout hold whole tensors", step="leave out the tensor-parallel degree"
        )
    if asked < 1:
        raise CheckpointError(f"tensor-parallel degree {asked} is not at least 1", step="give the number of rank files")
    return asked


def _requantized(
    checkpoint: Checkpoint, layout: Layout, ranks: int, allowed: bool
) -> tuple[Weights, GLMConfig, Requantized | None]:
    """The weights to write as the layout packs them, their config, and what changes integers where that has to be."""
    weights, config = checkpoint.weights, checkpoint.config
    packing: Packing = "panels" if layout is OWN else "rows"
    if config.quantization is None or not allowed:
        return *repacked(weights, config, packing), None
    blocks = blocks_for(config, ranks, layout.scale_blocks)
    if blocks == config.quantization.column_blocks:
        return *repacked(weights, config, packing), None
    changed = Requantized(*repacked(weights, config, "rows"), blocks)
    return *repacked(changed, changed.config, packing), changed


def _tag(checkpoint: Checkpoint, layout: Layout) -> str:
    """The folder of rank files: as in the source where that has one too."""
    found = read_tag(checkpoint.directory) if layout.container == "ranks" else None
    return layout.tag if found is None else found[0]


def _fingerprint(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Size and time of every file of weights."""
    stats = {path: path.stat() for file in checkpoint.files for path in file.paths}
    return {
        os.path.relpath(path, checkpoint.directory): [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()
    }


def _check_space(work: Path, outputs: Outputs, journal: Journal) -> None:
    free = shutil.disk_usage(work).free
    needed = outputs.nbytes + SPARE_BYTES - journal.done_bytes()
    if needed > free:
        raise CheckpointError(
            f"{work.parent} has {free / 1e9:.1f} GB free, the conversion needs {needed / 1e9:.1f} GB",
            step="make room or choose another place",
        )


def _write_small(
    checkpoint: Checkpoint,
    layout: Layout,
    target: GLMConfig,
    ranks: int,
    outputs: Outputs,
    work: Path,
    dtype: str | None,
    carried: Mapping[str, Path],
) -> list[str]:
    """Write config, indexes, tags and what is carried along; the names of the latter."""
    generation = checkpoint.generation
    values = layout.write_config(
        target, Extras(generation=generation, dtype=dtype or _main_dtype(outputs), ranks=ranks)
    )
    if layout is not OWN:
        values = with_identity(values, checkpoint.family, layout, checkpoint.name)
    elif checkpoint.name is not None:
        values[NAME_KEY] = checkpoint.name
    small = {**outputs.small, layout.config_file: (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode()}
    if layout is OWN and (settings := generation.to_dict()):
        small[GENERATION_FILE] = (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode()
    others = {
        name: read_small(path, CheckpointError, limit=LARGEST) for name, path in carried.items() if name not in small
    }
    for name, data in {**small, **others}.items():
        with atomic_write(inside(work, name)) as file:
            file.write(data)
    return sorted(others)


def _verify(
    checkpoint: Checkpoint, stored: Weights, target: GLMConfig, work: Path, outputs: Outputs, progress: Progress
) -> list[str]:
    """Open what was written and compare; returns what its own layout decides otherwise than the source's."""
    written = open_checkpoint(work, family=checkpoint.family.name)
    done = 0
    total = sum(written.weights.info(name).nbytes for name in written.weights.names())

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(Step("verify", "", done, total))

    try:
        compare(stored, written.weights, where=str(work), tick=tick)
    finally:  # some systems rename no directory with a mapped file in it
        for file in written.files:
            file.close()
    return config_changes(target, written.config, written.layout.name)


def _main_dtype(outputs: Outputs) -> str:
    """The floating-point dtype that most bytes have."""
    found = {name: count for name, count in _bytes_by_dtype(outputs).items() if name in DTYPES}
    return max(found, key=lambda name: found[name])


def _bytes_by_dtype(outputs: Outputs) -> dict[str, int]:
    result: dict[str, int] = {}
    for file in outputs.files:
        for tensor in file.tensors:
            name = str(tensor.info.dtype).removeprefix("torch.")
            result[name] = result.get(name, 0) + tensor.info.nbytes
    return result


def _unlearned(layout: Layout, target: GLMConfig, outputs: Outputs) -> tuple[list[str], list[str]]:
    """Names of the derived tensors and of the second copies that were written."""
    names = [tensor.name for file in outputs.files for tensor in file.tensors]
    derived = {d.theirs.replace("{i}", str(i)) for d in layout.derived for i in range(target.num_layers)}
    copies = {alias.theirs for alias in layout.aliases if target.tie_embeddings and alias.stored}
    recomputed = dict.fromkeys(name for name in names if name in derived)
    return list(recomputed), list(dict.fromkeys(name for name in names if name.rpartition(".")[0] in copies))

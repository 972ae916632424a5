"""Strict comparison of what a checkpoint holds with what its config asks for; every difference is named."""

from collections.abc import Collection, Mapping, Sequence

import torch

from glmkit.config import GLMConfig, Quantization
from glmkit.errors import CheckpointError, closest, names_text
from glmkit.families.common.layout import Layout, template_match
from glmkit.model.integer_packing import COLUMN_CUT

from .choose_layout import is_unlearned
from .files.tensors import TensorInfo, equal_bits
from .published_tensors import PANEL_SCALES, Fused, derived_value
from .sources import Source

_SHOWN = 4
# Ranks that train for long may drift apart by rounding; beyond this share of the largest number it is something else.
_DRIFT = 0.1
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def canonical_names(
    layout: Layout, known: Collection[str], found: Mapping[str, Source], where: str
) -> tuple[dict[str, Source], list[str], bool]:
    """Published names -> sources, the found names nobody knows, and whether names came without the layout's base.

    Raises CheckpointError when two found names mean the same tensor.
    """
    result: dict[str, Source] = {}
    extra: list[str] = []
    bare = False
    for name, source in found.items():
        spelled = next((spelling for spelling in layout.spellings(name) if spelling in known), None)
        if spelled is None:
            extra.append(name)
            continue
        if spelled in result:
            raise CheckpointError(
                f"{where}: {name} and {result[spelled].name} are both {spelled}", step="remove one of them"
            )
        result[spelled] = source
        bare = bare or (spelled.startswith(layout.base) and not _has_base(layout, name))
    return result, extra, bare


def _has_base(layout: Layout, name: str) -> bool:
    return any(bare.startswith(layout.base) for bare in layout.unwrapped(name))


def check_tensors(
    layout: Layout,
    fused: Sequence[Fused],
    expected: Mapping[str, TensorInfo],
    ranks: Sequence[Mapping[str, Source]],
    extra: Collection[str],
    where: str,
) -> None:
    """Raise CheckpointError naming every kind of disagreement: missing, unknown, mis-shaped, of the wrong type."""
    problems = []
    wanted = [tensor.name for tensor in fused]
    missing = [name for name in wanted if any(name not in rank for rank in ranks)]
    if missing:
        problems.append(_listed(missing, extra, "is missing", "the file has"))
    if extra:
        problems.append(_listed(list(extra), missing or wanted, "is not part of this model", "closest"))
    wrong = []
    for tensor in fused:
        shape = tensor.shape(layout, len(ranks))
        asked = expected[tensor.parts[0]].dtype
        exact = not asked.is_floating_point or tensor.parameter in PANEL_SCALES
        for number, rank in enumerate(ranks):
            if tensor.name not in rank:
                continue
            info = rank[tensor.name].info()
            place = f" on rank {number}" if len(ranks) > 1 else ""
            if info.shape != shape:
                wrong.append(f"{tensor.name} has shape {info.shape}{place}, the config asks for {shape}")
            elif info.dtype not in ((asked,) if exact else _FLOATS):
                wanted_type = _plain(asked) if exact else "floating-point numbers of 16, 32 or 64 bits"
                wrong.append(f"{tensor.name} is {_plain(info.dtype)}{place}, the config asks for {wanted_type}")
            elif info.dtype != ranks[0][tensor.name].info().dtype:
                wrong.append(f"{tensor.name} is {_plain(info.dtype)}{place}, rank 0 has another type")
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        problems.append("; ".join(wrong[:_SHOWN]) + more)
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: Sequence[str], others: Collection[str], trouble: str, hint: str) -> str:
    """The first names with what is wrong with them and the closest of the others; how many more there are."""
    parts = []
    for name in names[:_SHOWN]:
        close = closest(name, others, cutoff=0.5)
        colon = ":" if hint == "closest" else ""
        parts.append(f"{name} {trouble}" + (f"; {hint}{colon} {close}" if close else ""))
    more = f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return "; ".join(parts) + more


def check_derived(layout: Layout, config: GLMConfig, found: Sequence[Mapping[str, Source]], where: str) -> list[str]:
    """Notes about stored rotary frequencies that differ from what the config gives.

    Raises CheckpointError when their number does not fit: then the width of the heads is another one.
    """
    notes = []
    for derived in layout.derived:
        value = derived_value(derived, config)
        names = [n for n in found[0] if any(template_match(derived.theirs, s) is not None for s in layout.spellings(n))]
        for name in names:
            pieces = [rank[name].read().float() for rank in found if name in rank]
            if len(pieces) > 1 and sum(piece.numel() for piece in pieces) == len(value):  # cut, maybe unevenly
                pieces = [torch.cat(pieces)]
                ordered = pieces[0].sort(descending=True).values
                if torch.allclose(ordered, value, rtol=2e-2, atol=1e-6) and not torch.equal(pieces[0], ordered):
                    raise CheckpointError(
                        f"{where}: {name} does not fall over the ranks: the rank files are in the wrong order",
                        step="rename them",
                    )
            for piece in pieces:
                if piece.shape != value.shape:
                    raise CheckpointError(
                        f"{where}: {name} has {piece.numel()} rotary frequencies, the config's heads of "
                        f"{config.head_dim} channels have {len(value)}",
                        step="check the number of heads in the config",
                    )
                if not torch.allclose(piece, value, rtol=2e-2, atol=1e-6):
                    notes.append(f"{name}: the stored frequencies differ from the config's, which are used")
                    break
    return notes[:2]


def check_copies(fused: Sequence[Fused], ranks: Sequence[Mapping[str, Source]], where: str) -> list[str]:
    """Notes on tensors that every rank holds whole and that differ a little between ranks.

    Raises CheckpointError when they differ by more than rounding, or when one rank's file was copied over another's.
    """
    cut = next((t.name for t in fused if t.cut_dim is not None and len(t.shapes[0]) == 2), None)
    for number in range(1, 0 if cut is None else len(ranks)):
        first, second = (rank[cut or ""].read() for rank in ranks[number - 1 : number + 1])
        if equal_bits(first[:1], second[:1]) and equal_bits(first, second) and bool(first.any()):
            raise CheckpointError(
                f"{where}: ranks {number - 1} and {number} hold the same part of the model",
                step="download one of them again",
            )
    differing: dict[str, float] = {}  # the largest difference, as a share of the largest number
    for tensor in fused if len(ranks) > 1 else ():
        if tensor.cut_dim is None:
            first, *others = [rank[tensor.name].read() for rank in ranks]
            if not all(equal_bits(first, other) for other in others):
                apart = max(float((first.float() - other.float()).abs().max()) for other in others)
                differing[tensor.name] = apart / max(float(first.abs().max()), 1e-30)
    if strangers := [name for name, share in differing.items() if not share < _DRIFT]:
        raise CheckpointError(
            f"{where}: {names_text(strangers, 3)} should be the same on every rank and is not; the rank files are not "
            f"of the same run, or one is damaged",
            step="get them again",
        )
    return [
        f"{name} differs a little between ranks, which should hold the same; rank 0's is taken" for name in differing
    ]


def stored_quantization(
    layout: Layout, config: GLMConfig, ranks: Sequence[Mapping[str, Source]], where: str
) -> Quantization | None:
    """Read from the tensors alone how they are quantised. Raises CheckpointError when no width fits."""
    bits, embeddings, blocks = None, False, 1
    for name in ranks[0]:
        stem, _, parameter = name.rpartition(".")
        found = layout.resolve(stem) if parameter == "weight_scale" else None
        if found is None:
            continue
        ours = found[0].ours[0].rpartition(".")[2]
        if ours in ("embed_tokens", "lm_head"):
            embeddings = True
            continue
        if ours not in COLUMN_CUT:
            continue
        cut = len(ranks) if found[0].cut == "columns" else 1
        weight = ranks[0].get(f"{stem}.weight")
        if weight is None or len(weight.info().shape) != 2:
            continue
        columns = config.head_dim * config.num_heads if ours == "o_proj" else config.inner_size
        ratio = columns / (weight.info().shape[1] * cut)
        if ratio not in (1.0, 2.0):
            raise CheckpointError(
                f"{where}: {stem}.weight has {weight.info().shape[1]} columns on each of {cut} ranks, which is neither "
                f"INT8 nor INT4 of {columns}"
            )
        bits = 8 if ratio == 1.0 else 4
        scale = ranks[0][name].info().shape
        blocks = scale[1] if len(scale) == 2 else cut
    return None if bits is None else Quantization(bits, embeddings, blocks)


def unexplained(layout: Layout, extra: Collection[str]) -> tuple[list[str], list[str]]:
    """Unknown names sorted into (nothing learned: derived or ignored, really unknown)."""
    plain = [name for name in extra if is_unlearned(layout, name)]
    return plain, [name for name in extra if name not in plain]

"""Facts of the model under an adapter, kept in the adapter's record and compared when it is loaded again.

A fingerprint is a few numbers of every kind of tensor, under our names, so that layout and dtype do not matter: the
same weights in another precision differ by its rounding only, other weights by more.

Legend: S numbers looked at.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from glmkit.config import Quantization
from glmkit.errors import CheckpointError, ConfigError, names_text
from glmkit.model.integer_packing import IntegerMatrix, row_count

from .adapter import Base

# Sizes that must agree, and facts that should.
SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "kv_heads", "head_dim", "inner_size")
_ANOTHER = "load it on the base it was trained with"
_SAMPLE = 16  # numbers of a tensor
_STRIDE = 7919  # columns between them, a prime
# Distances (of the samples, relative to their size) that rounding explains: to bfloat16 or float16, to 8 and 4 bits.
_ROUNDING = {None: 2.0**-8, 8: 0.1, 4: 0.5}
_OTHERS = 0.7  # the distance of matrices from which on they have nothing to do with each other; unrelated ones have 1.4


def base_facts(base: Base) -> dict[str, object]:
    """Sizes, family, precision and fingerprint of a model without adapter, as JSON values."""
    config, stored = base.config, base.config.quantization
    return {
        "family": config.family,
        **{name: getattr(config, name) for name in SIZES},
        "dtype": str(base.float_tensor.dtype).removeprefix("torch."),
        "quantization": _form(stored and dataclasses.asdict(stored)),
        "weights": _fingerprint(base),
    }


@dataclasses.dataclass(frozen=True)
class Differences:
    """Differences of a base from the recorded one: notes, and what changes results and is worth a warning."""

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def compare_bases(recorded: Mapping[str, object], here: Mapping[str, object], source: str) -> Differences:
    """Compare what a record says with the facts of this base.

    Raises CheckpointError for sizes that differ and for weights that have nothing in common, naming both.
    """
    for name in SIZES:
        if name in recorded and (type(recorded[name]) is not int or recorded[name] != here[name]):
            raise CheckpointError(
                f"{source}: made for a base with {name} {recorded[name]!r}, this model has {here[name]}",
                step=_ANOTHER,
                param="adapter",
                code="other_base",
            )
    notes: list[str] = []
    warnings: list[str] = []
    for name in ("family", "dtype", "quantization"):
        if name in recorded and _form(recorded[name]) != _form(here[name]):
            text = f"made on a base with {name} {_shown(recorded[name])}, this one has {_shown(here[name])}"
            if name == "quantization" and here[name] is None and (bits := _bits(recorded)) is not None:
                text += f'; quantize="int{bits}" (--quantize int{bits}) makes it as it was in training'
            (notes if name == "dtype" else warnings).append(text)
    if different := _compare_weights(recorded, here, source):
        warnings.append(different)
    return Differences(tuple(notes), tuple(warnings))


def _compare_weights(recorded: Mapping[str, object], here: Mapping[str, object], source: str) -> str:
    """A sentence on weights that differ by more than rounding, "" where they do not."""
    theirs, ours = recorded.get("weights"), here["weights"]
    if not isinstance(theirs, Mapping) or not isinstance(ours, Mapping):
        return ""
    limit = max(_ROUNDING[_bits(facts)] for facts in (recorded, here))
    apart: dict[str, float] = {}
    for name in theirs.keys() & ours.keys():
        apart[name] = _distance(_numbers(theirs[name]), _numbers(ours[name]))
    matrices = [name for name in apart if _is_matrix(name)]
    if matrices and min(apart[name] for name in matrices) > _OTHERS:
        raise CheckpointError(
            f"{source}: made on other weights than this model's: none of {len(matrices)} matrices looked at is like "
            f"the recorded one",
            step=_ANOTHER,
            param="adapter",
            code="other_base",
        )
    rounded = {name: limit if _is_matrix(name) else _ROUNDING[None] for name in apart}
    changed = sorted(name for name in apart if apart[name] > rounded[name])
    if not changed:
        return ""
    worst = max(apart[name] for name in changed)
    return (
        f"made on a base with other weights: {len(changed)} of {len(apart)} tensors looked at differ, by up to "
        f"{100 * worst:.2g} % ({names_text(changed, 2)}); base and chat models and later versions have equal shapes"
    )


def _fingerprint(base: Base) -> dict[str, list[float]]:
    """Numbers of some tensors by our names; none of a model without memory."""
    if base.float_tensor.is_meta:
        return {}
    return {name: [float(f"{x:.6g}") for x in values_S.tolist()] for name, values_S in _samples(base)}


@torch.no_grad()
def _samples(base: Base) -> Iterator[tuple[str, Tensor]]:
    layers = sorted({0, base.config.num_layers // 2, base.config.num_layers - 1})
    kinds = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
    stems = [f"model.layers.{layer}.{kind}" for layer in layers for kind in kinds]
    for stem in ("model.embed_tokens", *stems, "model.norm"):
        module = base.model.get_submodule(stem)
        yield f"{stem}.weight", _sample(module)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            yield f"{stem}.bias", _spread(bias)


def _sample(module: nn.Module) -> Tensor:
    """(S,) numbers of a module's weight, evenly spread; of integers the floats that they stand for."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.dim() == 1:
        return _spread(weight)
    count = row_count(module)
    rows = [number * count // _SAMPLE for number in range(_SAMPLE)]
    if isinstance(module, IntegerMatrix):
        found = [module.floats(row, row + 1)[0] for row in rows]
    else:
        found = [weight[row] for row in rows]
    return torch.stack([row[number * _STRIDE % len(row)] for number, row in enumerate(found)]).float().cpu()


def _spread(values: Tensor) -> Tensor:
    places = [number * len(values) // _SAMPLE for number in range(_SAMPLE)]
    return values[places].float().cpu()


def _distance(one: list[float], two: list[float]) -> float:
    """|one - two| relative to the larger of the two; 0 for equal ones, infinity for samples of other lengths."""
    if len(one) != len(two):
        return math.inf
    largest = max(math.hypot(*one), math.hypot(*two))
    return math.dist(one, two) / largest if largest else 0.0


def _numbers(values: object) -> list[float]:
    listed = values if isinstance(values, list) else []
    return [float(x) for x in listed if isinstance(x, int | float)]


def _is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "model.embed_tokens.weight"


def form_of(recorded: Mapping[str, object], bits: int) -> Quantization | None:
    """The form of integers of `bits` that a record says its base had; None where it had none."""
    form = _form(recorded.get("quantization"))
    if _bits(recorded) != bits or not isinstance(form, Mapping):
        return None
    try:
        return Quantization(**form, packing="panels")
    except (ConfigError, TypeError):
        return None


def _form(value: object) -> object:
    """Record of integers without what only files know, and with the usual values of newer fields."""
    if not isinstance(value, Mapping):
        return value
    given = {key: fact for key, fact in value.items() if key != "packing"}
    usual = {field.name: field.default for field in dataclasses.fields(Quantization) if field.name != "packing"}
    return {**usual, **given}


def _bits(facts: Mapping[str, object]) -> int | None:
    quantization = facts.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, Mapping) else None
    return bits if bits in (4, 8) else None


def _shown(value: object) -> str:
    """A fact in words; quantisation by its bits, and whether the word table has them as well."""
    if isinstance(value, Mapping) and "bits" in value:
        return f"INT{value['bits']}{' with its word table' if value.get('embeddings') else ''}"
    return "none" if value is None else repr(value)

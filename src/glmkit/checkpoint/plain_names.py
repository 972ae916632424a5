"""Stored names as the model itself spells them: without what training code wraps around it, adapters told apart."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

from glmkit.errors import CheckpointError, names_text
from glmkit.families.common.layout import WRAPPERS
from glmkit.families.common.native_layout import OWN
from glmkit.families.family import all_families

# Parts of names that only tensors of an adapter have: P-Tuning v2, prompt encoders, and PEFT's low-rank kinds.
_PROMPTS = ("prefix_encoder", "prompt_encoder", "prompt_embeddings")
_LOW_RANK = ("lora_", "ia3_", "hada_", "lokr_", "oft_", "boft_", "vera_", "vblora_", "randlora_")
# First parts of what reward and PPO training puts beside the model (TRL, DeepSpeed-Chat).
_VALUE_HEADS = ("v_head", "value_head", "reward_head")
_TRAINED, _ORIGINAL, _BASE = "modules_to_save", "original_module", "base_layer"


@dataclass(frozen=True)
class PlainNames:
    """Plain name -> stored name of the model's tensors, names of an adapter's, and remarks of one line each."""

    model: dict[str, str]
    adapter: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def plain_names(names: Collection[str], where: str) -> PlainNames:
    """Sort the names of one rank.

    Dropped are parts that begin with an underscore (`_orig_mod`, `_fsdp_wrapped_module`, `_checkpoint_wrapped_module`,
    `_forward_module`, Lightning's module), PEFT's `base_layer`, and whatever stands before the model as a whole
    (`module.`, `pretrained_model.`, any other). Of PEFT's two copies of a module that was trained whole the trained one
    counts. Raises CheckpointError when two names mean the same tensor, or when several models lie in one file.
    """
    adapter: list[str] = []
    heads: list[str] = []
    plain: dict[str, str] = {}
    trained = {unwrapped(name) for name in names if _TRAINED in name.split(".")}
    for name in names:
        parts = name.split(".")
        if is_adapter_part(parts):
            adapter.append(name)
        elif parts[0] in _VALUE_HEADS:
            heads.append(name)
        elif _ORIGINAL not in parts or unwrapped(name) not in trained:
            bare = unwrapped(name)
            if bare in plain:
                raise CheckpointError(f"{where}: {name} and {plain[bare]} are both {bare}", step="remove one of them")
            plain[bare] = name
    wrapper = _wrapper(plain, where)
    notes = [] if not wrapper or _is_known(wrapper) else [f"names are read without {wrapper!r}, a trainer's wrapper"]
    if heads:
        notes.append(f"left out, a value head of reward training: {names_text(heads, 2)}")
    if trained:
        notes.append(f"{len(trained)} tensors were trained beside an adapter ({min(trained)}, ...); those are taken")
    return PlainNames({bare.removeprefix(wrapper): name for bare, name in plain.items()}, tuple(adapter), notes)


def is_adapter_part(parts: Collection[str]) -> bool:
    """True for the parts of a name that belongs to an adapter, not to a model."""
    return any(part in _PROMPTS or part.startswith(_LOW_RANK) for part in parts)


def adapter_words(names: Collection[str]) -> str:
    """Words for the adapter that tensors of these names make."""
    parts = {part for name in names for part in name.split(".")}
    if parts.intersection(_PROMPTS):
        return "a P-Tuning prefix"
    return "LoRA matrices" if any(part.startswith("lora_") for part in parts) else "an adapter"


def unwrapped(name: str) -> str:
    """The name without wrappers inside it; the last part, the parameter, always stays."""
    *parts, last = name.split(".")
    kept: list[str] = []
    for number, part in enumerate(parts):
        named = number > 0 and parts[number - 1] == _TRAINED  # `modules_to_save.default`: the adapter's name
        if not (part.startswith("_") or part in (_BASE, _TRAINED, _ORIGINAL) or named):
            kept.append(part)
    return ".".join((*kept, last))


def _wrapper(names: Collection[str], where: str) -> str:
    """The text before the names of the whole model, by the place of the word table; "" without one."""
    found: dict[str, str] = {}
    for name in names:
        stem, _, parameter = name.rpartition(".")
        before = [stem.removesuffix(table) for table in _word_tables() if stem.endswith(table)]
        before = [text for text in before if not text or text.endswith(".")]
        if before and parameter == "weight":
            found[min(before, key=len)] = name
    if len(found) > 1:
        raise CheckpointError(
            f"{where} holds several models: {names_text(sorted(found.values()), 4)}", step="save one of them alone"
        )
    return next(iter(found), "")


@cache
def _word_tables() -> frozenset[str]:
    """Stems of the word table in every layout, with and without the base's part."""
    layouts = (OWN, *(layout for family in all_families().values() for layout in family.layouts))
    pairs = [(layout, rule.theirs) for layout in layouts for rule in layout.rules if "model.embed_tokens" in rule.ours]
    return frozenset(stem for layout, theirs in pairs for stem in (theirs, theirs.removeprefix(layout.base)))


def _is_known(wrapper: str) -> bool:
    """True for wrappers that every tool leaves, such as "module."."""
    while known := next((w for w in (*WRAPPERS, "model.") if wrapper.startswith(w)), ""):
        wrapper = wrapper.removeprefix(known)
    return not wrapper

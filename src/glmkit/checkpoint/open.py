"""Opening any published model directory: what it is, its config, and its tensors under our names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glmkit.config import GLMConfig, Quantization
from glmkit.errors import CheckpointError, ConfigError
from glmkit.families.common.layout import Layout, Published
from glmkit.families.common.native_layout import FORMAT_KEY, OWN
from glmkit.families.family import Family, all_families

from .choose_layout import choose_layout
from .configure import ConfigLike, Given, configure, read_given
from .detect import Found, detect, read_generation_config, tokenizer_texts
from .files.open_file import open_tensor_file
from .files.tensors import TensorFile, TensorInfo, equal_bits
from .infer import infer_config
from .published_tensors import Fused, check_ranks, fused_tensors
from .published_weights import PublishedWeights, Source, copied_ranks, replicas_that_differ
from .validate import canonical_names, check_derived, check_tensors, stored_quantization, unexplained
from .weights import expected_tensors

# Ranks that train for long may drift apart by rounding; beyond this share of the largest number it is something else.
_DRIFT = 0.1


@dataclass(frozen=True)
class Checkpoint:
    """An opened model directory. `notes`: what was decided or left out, one line each.

    ranks: tensor-parallel files it is cut into. bare: names lack the prefix of the head class. prefix: names of a
    P-Tuning prefix that lies among the weights.
    """

    directory: Path
    family: Family
    layout: Layout
    config: GLMConfig
    weights: PublishedWeights
    ranks: int
    generation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: tuple[TensorFile, ...] = ()
    bare: bool = False
    prefix: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of all files."""
        return sum(file.nbytes for file in self.files)


def open_checkpoint(
    directory: str | Path, *, config: ConfigLike | None = None, family: str | None = None
) -> Checkpoint:
    """Open a model directory in any layout it was ever published in, or glmkit's own.

    config: a preset's name, a file (a published config, or fields of ours in JSON or YAML), fields, or a GLMConfig; for
    directories that ship none, or to override fields of the one they ship. family: decides where several share a
    layout. Nothing is read but names, shapes and what two copies must agree on. Raises CheckpointError, ConfigError.
    """
    directory = Path(directory)
    found = detect(directory)
    given = read_given(config)
    files = [[open_tensor_file(path) for path in paths] for paths in found.ranks]
    notes = [*found.notes]
    ranks = [_named(found, opened, notes) for opened in files]
    notes += _bookkeeping(files, directory)
    kind, layout = _choose(found, ranks, given, family)
    published = _config(found, kind, layout, given, ranks)
    config_now = _with_quantization(layout, published.config, ranks, notes, directory)
    published = replace(published, config=config_now)

    settings, sources, fused, expected, extra, bare = _matched(layout, config_now, ranks, directory)
    plain, prefix, unknown = unexplained(layout, extra)
    check_tensors(layout, fused, expected, sources, unknown, str(directory))
    notes += published.notes + check_derived(layout, settings, ranks, str(directory)) + _left_out(plain)
    settings, sources, fused = _heads(layout, settings, sources, fused, ranks, notes, directory)
    if (same := copied_ranks(fused, sources)) is not None:
        raise CheckpointError(
            f"{directory}: ranks {same[0]} and {same[1]} hold the same part of the model",
            step="download one of them again",
        )
    notes += _drift(replicas_that_differ(fused, sources), directory)
    if not prefix and (found.config or {}).get("pre_seq_len"):
        notes.append(
            "the config has a pre_seq_len, but no P-Tuning prefix lies among the weights: it is an adapter of its own"
        )
    beside, doubts = read_generation_config(directory, settings.vocab_size)
    generation, notes = {**published.generation, **beside}, notes + doubts
    weights = PublishedWeights(layout, fused, sources)
    opened = tuple(file for rank in files for file in rank)
    return Checkpoint(
        directory, kind, layout, settings, weights, len(ranks), generation, notes, opened, bare, tuple(prefix)
    )


def _named(found: Found, files: Sequence[TensorFile], notes: list[str]) -> dict[str, Source]:
    """Tensor names of one rank over all its files, compared with the index where there is one."""
    result: dict[str, Source] = {}
    for file in files:
        for name in file.keys():  # noqa: SIM118 - a TensorFile is no mapping
            listed = None if found.index is None else found.index.get(name)
            again = Source(file, name)
            if name in result:
                places = f"{name} is in {result[name].file.path.name} and in {file.path.name}"
                if listed is None or not _same(again, result[name]):
                    differing = "" if listed is None else ", with other numbers"
                    raise CheckpointError(f"{found.directory}: {places}{differing}", step="download both again")
                notes.append(f"{places}, the same in both")
            if name not in result or listed == file.path.name:
                result[name] = again
    if found.index is not None:
        for name, listed in found.index.items():
            if name not in result or result[name].file.path.name != listed:
                where = f"it is in {result[name].file.path.name}" if name in result else "it is in no shard"
                raise CheckpointError(
                    f"{found.directory}: the index says that {name} is in {listed}, but {where}",
                    step="download both again",
                )
        unlisted = [name for name in result if name not in found.index]
        if unlisted:
            notes.append(f"not listed in the index: {_few(unlisted)}")
    if not result:
        raise CheckpointError(f"{files[0].path} holds no tensors")
    return result


def _few(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _bookkeeping(files: Sequence[Sequence[TensorFile]], directory: Path) -> list[str]:
    """A note on what lies beside the tensors. Raises CheckpointError when it says that rank files are missing."""
    extras: dict[str, Any] = {}
    for rank in files:
        for file in rank:
            extras.update({key: value for key, value in file.extras.items() if "metadata" not in key})
    world = extras.get("mp_world_size")
    if type(world) is int and world > 1 and world != len(files):
        raise CheckpointError(
            f"{directory} was written by {world} model-parallel ranks, but has {len(files)} rank files"
        )
    shown = [
        f"{key}={value}" if type(value) in (int, float, str) and len(str(value)) < 20 else key
        for key, value in extras.items()
    ]
    return [f"training bookkeeping left out: {', '.join(shown)}"] if shown else []


def _drift(differing: Mapping[str, float], directory: Path) -> list[str]:
    """Notes on tensors that ranks should share. Raises CheckpointError when ranks are not of the same run."""
    apart = [name for name, share in differing.items() if not share < _DRIFT]
    if apart:
        raise CheckpointError(
            f"{directory}: {_few(apart)} should be the same on every rank and is not; the rank files are not of the "
            f"same run, or one is damaged",
            step="get them again",
        )
    return [
        f"{name} differs a little between ranks, which should hold the same; rank 0's is taken" for name in differing
    ]


def _left_out(names: Sequence[str]) -> list[str]:
    return [f"left out, it follows from the config: {_few(names, 2)}"] if names else []


def _choose(
    found: Found, ranks: Sequence[Mapping[str, Source]], given: Given | None, family: str | None
) -> tuple[Family, Layout]:
    if found.own or all(OWN.resolve(name.rpartition(".")[0]) is not None for name in ranks[0]):
        if not found.own and given is None:
            raise CheckpointError(
                f"{found.config_path or found.directory / 'config.json'} was not written by glmkit (no {FORMAT_KEY}), "
                f"but the tensors were; restore it, or give config="
            )
        name = str((given.family if given is not None else None) or (found.config or {}).get("family", ""))
        return all_families().get(name, Family(name=name, title=name or "own")), OWN
    texts = tokenizer_texts(found.directory)
    values = dict(found.config or {})
    if given is not None and given.kind == "published":
        values = dict(given.values)
    names = list(ranks[0])
    named = given.family if given is not None and family is None else None
    if named is not None and named in all_families():
        try:
            return choose_layout(names, found.container, values, texts, family=named, where=str(found.directory))
        except CheckpointError as error:
            kind, _ = choose_layout(names, found.container, values, texts, where=str(found.directory))
            assert given is not None
            raise CheckpointError(
                f"{given.source} is of the family {named!r}, but the tensors in {found.directory} are named as in "
                f"{kind.title}"
            ) from error
    return choose_layout(names, found.container, values, texts, family=family, where=str(found.directory))


def _config(
    found: Found, family: Family, layout: Layout, given: Given | None, ranks: Sequence[Mapping[str, Source]]
) -> Published:
    where = str(found.config_path or found.directory)
    try:
        return configure(
            layout,
            found.config,
            given,
            lambda heads: infer_config(family, layout, ranks, str(found.directory), heads),
            where,
        )
    except ConfigError as error:
        raise error.behind(f"{found.directory}: ") from error


def _with_quantization(
    layout: Layout,
    config: GLMConfig,
    ranks: Sequence[Mapping[str, Source]],
    notes: list[str],
    directory: Path,
) -> GLMConfig:
    """The config with what the tensors show; integers are never requantised on reading."""
    stored = stored_quantization(layout, config, ranks, str(directory))
    said = config.quantization
    if (said is None) != (stored is None) or (said and stored and said.bits != stored.bits):
        if said is not None:
            raise CheckpointError(
                f"{directory}: the config says INT{said.bits}, but the tensors are {_kind(stored)}; config and weights "
                f"are not of the same release"
            )
        notes.append(f"the config does not say so, but the tensors are {_kind(stored)}")
    return replace(config, quantization=stored)


def _kind(quantization: Quantization | None) -> str:
    return "not quantised" if quantization is None else f"INT{quantization.bits}"


_Matched = tuple[GLMConfig, list[dict[str, Source]], list[Fused], dict[str, TensorInfo], list[str], bool]


def _matched(layout: Layout, config: GLMConfig, ranks: Sequence[Mapping[str, Source]], directory: Path) -> _Matched:
    """Sources by published name, and what is left over, for a config."""
    if config.num_layers > len(ranks[0]):
        raise CheckpointError(
            f"{directory}: the config says {config.num_layers} layers, the file has {len(ranks[0])} tensors in all"
        )
    expected = expected_tensors(config)
    fused = fused_tensors(layout, config, expected, copies=False)
    check_ranks(layout, config, fused, len(ranks))
    known = {tensor.name for tensor in fused} | _copy_names(layout, config)
    sources, extra, bare = [], dict[str, None](), False
    for rank in ranks:
        named, rest, lacks_base = canonical_names(layout, known, rank, str(directory))
        sources.append(named)
        extra.update(dict.fromkeys(rest))
        bare = bare or lacks_base
    return config, sources, fused, expected, list(extra), bare


def _copy_names(layout: Layout, config: GLMConfig) -> set[str]:
    if not config.tie_embeddings:
        return set()
    return {f"{alias.theirs}.{parameter}" for alias in layout.aliases for parameter in ("weight", "weight_scale")}


def _heads(
    layout: Layout,
    config: GLMConfig,
    sources: list[dict[str, Source]],
    fused: list[Fused],
    ranks: Sequence[Mapping[str, Source]],
    notes: list[str],
    directory: Path,
) -> tuple[GLMConfig, list[dict[str, Source]], list[Fused]]:
    """Compare a stored second copy of the embedding with it; when they differ the model is untied."""
    if not config.tie_embeddings or not layout.aliases:
        return config, sources, fused
    (alias,) = layout.aliases
    table = next(tensor for tensor in fused if alias.of in (part.rpartition(".")[0] for part in tensor.parts))
    stem = table.name.rpartition(".")[0]
    copies = [name for name in sources[0] if name.rpartition(".")[0] == alias.theirs]
    if not copies:
        if alias.stored:
            notes.append(f"{alias.theirs}.weight is not stored; the embedding is the head as well")
        return config, sources, fused
    if all(_same(sources[0][name], sources[0].get(name.replace(alias.theirs, stem, 1))) for name in copies):
        return config, sources, fused
    untied = replace(config, tie_embeddings=False)
    notes.append(f"{copies[0]} differs from the embedding: the model is loaded with a head of its own")
    config, sources, fused, expected, extra, _ = _matched(layout, untied, ranks, directory)
    check_tensors(layout, fused, expected, sources, unexplained(layout, extra)[2], str(directory))
    return config, sources, fused


def _same(copy: Source, original: Source | None, step: int = 1 << 20) -> bool:
    """Whether two stored tensors have the same bytes, block by block; their pages are let go of."""
    if original is None or copy.info() != original.info():
        return False
    if copy == original:
        return True
    first, second = copy.read().reshape(-1), original.read().reshape(-1)
    equal = all(equal_bits(first[i : i + step], second[i : i + step]) for i in range(0, first.numel(), step))
    copy.release()
    original.release()
    return equal

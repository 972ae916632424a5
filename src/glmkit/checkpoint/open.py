"""The opening of a model directory: five stages, each a frozen value made of the one before.

    Detected (detect.py)   which files hold the weights, and which config lies beside them
    Opened                 the files mapped; every stored name, rank by rank
    Identified             family, layout and config
    Matched                the tensors that the config asks for, each with its source
    Checkpoint             checked: nothing missing, nothing left over, every shape and copy as it should be

Loading, conversion and diagnosis all come this way. Read are names, shapes and what two copies must agree on, no more.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from glmkit.config import GenerationSettings, GLMConfig, Quantization
from glmkit.errors import CheckpointError, ConfigError, GuessWarning, message_text, names_text
from glmkit.families.common.layout import Layout, Rule
from glmkit.families.family import Family
from glmkit.families.judge import Judgement
from glmkit.families.strangers import stranger

from .choose_layout import choose
from .configure import ConfigLike, Given, configure, read_generation_config, read_given
from .deepspeed import open_partitioned
from .detect import Detected, detect, partitions_beside, rank_name
from .files.mapping import TensorFile
from .files.open_file import open_tensor_file
from .files.tensors import TensorInfo
from .infer import infer_config, ranks_there_were
from .plain_names import adapter_words, plain_names
from .published_tensors import Fused, check_ranks, fused_tensors
from .published_weights import PublishedWeights
from .sources import Source, name_sources, same_bytes
from .validate import canonical_names, check_copies, check_derived, check_tensors, stored_quantization, unexplained
from .weights import expected_tensors

# Tensors (published name -> dtype and shape) that modules of the caller's own have beside a model of this config.
Added = Callable[[GLMConfig], Mapping[str, TensorInfo]]


@dataclass(frozen=True)
class Opened:
    """Mapped files of each rank, and where the tensor of each plain name of a rank lies.

    adapter: stored names of an adapter that lies among the weights.
    """

    found: Detected
    files: tuple[tuple[TensorFile, ...], ...]
    ranks: tuple[Mapping[str, Source], ...]
    notes: tuple[str, ...]
    adapter: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identified:
    """Family and layout of an opened directory, its config (quantised as the tensors are) and generation settings.

    judgement: how the family was told from others with the same names. name: what the config calls the model. added:
    tensors beside the model's that belong to it for the caller.
    """

    opened: Opened
    family: Family
    layout: Layout
    config: GLMConfig
    generation: GenerationSettings
    notes: tuple[str, ...]
    judgement: Judgement
    name: str | None = None
    added: Added | None = None


@dataclass(frozen=True)
class Matched:
    """The tensors that a config asks for, per rank the sources by published name, and the names that are left over.

    bare: names lack the prefix of the head class. added: names of those of the caller's own.
    """

    identified: Identified
    config: GLMConfig
    expected: Mapping[str, TensorInfo]
    fused: Sequence[Fused]
    sources: Sequence[Mapping[str, Source]]
    extra: Sequence[str]
    bare: bool
    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checked model directory. `notes`: what was decided or left out, one line each.

    ranks: tensor-parallel files it is cut into. bare: names lack the prefix of the head class. adapter: stored names of
    an adapter (a P-Tuning prefix, LoRA matrices) that lies among the weights. judgement, name: see `Identified`. added:
    names of tensors of the caller's own, which `weights` has as well.
    """

    directory: Path
    family: Family
    layout: Layout
    config: GLMConfig
    weights: PublishedWeights
    ranks: int
    judgement: Judgement
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    notes: list[str] = field(default_factory=list)
    files: tuple[TensorFile, ...] = ()
    bare: bool = False
    adapter: tuple[str, ...] = ()
    name: str | None = None
    added: tuple[str, ...] = ()

    @property
    def guess(self) -> str | None:
        """The guess about the family that decides what is computed and how a prompt looks; None when it is sure."""
        return self.judgement.guess


def open_checkpoint(
    directory: str | Path,
    *,
    config: ConfigLike | None = None,
    family: str | None = None,
    added: Added | None = None,
) -> Checkpoint:
    """Open a model directory in any layout it was ever published in, or glmkit's own.

    config: a preset's name, a file (a published config, or fields of ours in JSON or YAML), fields, or a GLMConfig; for
    directories that ship none, or to override fields of the one they ship. family: decides where several share a
    layout. added: tensors that modules of the caller's own have; all of them are there, or none.
    Raises CheckpointError, ConfigError; a guess about the family is a GuessWarning.
    """
    found = detect(Path(directory))
    given = read_given(config)
    checkpoint = check(match(replace(identify(open_files(found), given, family), added=added)))
    if checkpoint.guess is not None:
        warnings.warn(f"{directory}: {checkpoint.guess}", GuessWarning, stacklevel=2)
    return checkpoint


# --- Opened -----------------------------------------------------------------------------------------------------------


def open_files(found: Detected) -> Opened:
    """Map all files and list their names. Raises CheckpointError for files that do not belong together."""
    files = map_files(found)
    notes = [*found.notes]
    ranks = tuple(name_sources(found.directory, rank, found.index, notes) for rank in files)
    for paths, names in zip(found.ranks, ranks, strict=True):
        if not names:
            raise CheckpointError(f"{paths[0]} holds no tensors")
    dtypes = {str(source.info().dtype).removeprefix("torch.") for source in ranks[0].values()}
    if (other := stranger(ranks[0], dtypes, found.config or {})) is not None:
        raise CheckpointError(f"{found.directory} holds {other.what}", step=other.step)
    if empty := [name for rank in ranks for name, source in rank.items() if _is_placeholder(name, source)]:
        parts = None if found.partitioned else partitions_beside(found)
        if parts is None:
            raise CheckpointError(
                f"{found.ranks[0][0]}: {names_text(empty, 2)} are empty, placeholders that DeepSpeed ZeRO-3 leaves "
                f"where it saves without gathering",
                step="give the folder with its global_step folder, or join that with zero_to_fp32.py",
            )
        opened = open_files(parts)
        note = f"{found.ranks[0][0].name} holds empty placeholders: the ZeRO-3 files beside it are read"
        return replace(opened, notes=(note, *opened.notes))
    where = str(found.directory)
    named = [plain_names(rank, where) for rank in ranks]
    if not named[0].model:
        raise CheckpointError(
            f"{where} holds {adapter_words(named[0].adapter)} only ({names_text(named[0].adapter, 2)}), not a model",
            step=f"load the base model and give adapter={where}",
        )
    plain = tuple(
        {name: rank[stored] for name, stored in names.model.items()} for names, rank in zip(named, ranks, strict=True)
    )
    notes += named[0].notes
    return Opened(found, files, plain, (*notes, *_bookkeeping(files, found.directory)), named[0].adapter)


def _is_placeholder(name: str, source: Source) -> bool:
    """True for a parameter without numbers; empty buffers, of which a rank may get none, are harmless."""
    return source.info().shape == (0,) and name.endswith(("weight", "bias"))


def map_files(found: Detected) -> tuple[tuple[TensorFile, ...], ...]:
    """The files of each rank, mapped; the many of a ZeRO-3 folder are one. Raises CheckpointError as the readers do."""
    if found.partitioned:
        return ((open_partitioned(found.ranks[0]),),)
    return tuple(tuple(open_tensor_file(path) for path in paths) for paths in found.ranks)


def _bookkeeping(files: Sequence[Sequence[TensorFile]], directory: Path) -> list[str]:
    """Note what lies beside the tensors. Raises CheckpointError when it says that rank files are missing."""
    extras = {
        key: value for rank in files for file in rank for key, value in file.extras.items() if "metadata" not in key
    }
    world = extras.get("mp_world_size")
    if type(world) is int and world > 1 and world != len(files):
        raise CheckpointError(
            f"{directory} was written by {world} model-parallel ranks, but files of {len(files)} are here",
            step="copy the rank files of all of them, mp_rank_*_model_states.pt of one checkpoint",
        )
    shown = [
        f"{key}={value}" if type(value) in (int, float, str) and len(str(value)) < 20 else key
        for key, value in extras.items()
    ]
    return [f"training bookkeeping left out: {', '.join(shown)}"] if shown else []


# --- Identified -------------------------------------------------------------------------------------------------------


def identify(opened: Opened, given: Given | None = None, family: str | None = None) -> Identified:
    """Family, layout and config, by the names, the config file, `given` and, where neither says enough, the shapes."""
    found, ranks, where = opened.found, opened.ranks, str(opened.found.directory)
    choice = choose(found, {name: source.info().shape for name, source in ranks[0].items()}, given, family)
    kind, layout = choice.family, choice.layout
    _check_ranks_there(opened, layout, given)
    try:
        published = configure(
            layout, found.config, given, lambda heads: infer_config(kind, layout, ranks, where, heads)
        )
    except ConfigError as error:
        raise error.behind(f"{where}: ") from error
    said, notes = published.config.quantization, [*published.notes]
    # The packing is that of the files: a loaded model's config says panels, whatever it was read from. Panels say by
    # their names and shapes alone whether they are what the rest of the config says.
    if said is not None and any(name.endswith(".row_scale") for name in ranks[0]):
        stored: Quantization | None = replace(said, packing="panels")
    else:
        stored = stored_quantization(layout, published.config, ranks, where)
    if (said and said.bits) != (stored and stored.bits):
        shown = "not quantised" if stored is None else f"INT{stored.bits}"
        if said is not None:
            if stored is None:
                raise CheckpointError(
                    f"{where}: the config says INT{said.bits}, but the tensors are not quantised",
                    step=f"set its quantization_bit to 0; --quantize int{said.bits} (quantize='int{said.bits}') "
                    f"quantises them on the way in",
                )
            raise CheckpointError(
                f"{where}: the config says INT{said.bits}, but the tensors are {shown}; config and weights are not of "
                f"the same release"
            )
        notes.insert(0, f"the config does not say so, but the tensors are {shown}")
    config = replace(published.config, quantization=stored)  # integers are never requantised on reading
    return Identified(
        opened, kind, layout, config, published.generation, tuple(notes), choice.judgement, published.name
    )


def _check_ranks_there(opened: Opened, layout: Layout, given: Given | None) -> None:
    """Raise CheckpointError naming the rank files that are missing behind the last one that is here."""
    found = opened.found
    if found.container == "huggingface" or found.partitioned or not layout.parallel:
        return
    rows = (
        given.config.vocab_size
        if given is not None and given.config is not None
        else (found.config or {}).get("vocab_size")
    )
    shapes = [(name, source.info().shape) for name, source in opened.ranks[0].items()]
    there_were = ranks_there_were(layout, shapes, len(opened.ranks), rows if type(rows) is int else None)
    if there_were is None:
        return
    count, share = there_were
    last = found.ranks[-1][0]
    names = [rank_name(last.name, number) for number in range(len(found.ranks), count)]
    raise CheckpointError(
        f"{last.parent}: a rank holds {share}, so there were {count} ranks, and here are {len(found.ranks)}",
        step=f"copy {names_text(names, 8)} of the same checkpoint into {last.parent}",
    )


# --- Matched ----------------------------------------------------------------------------------------------------------


def match(identified: Identified, config: GLMConfig | None = None) -> Matched:
    """Sources by published name, and what is left over. Raises CheckpointError when a name is there twice.

    config: another one than was identified.
    """
    layout, config = identified.layout, config or identified.config
    ranks, where = identified.opened.ranks, str(identified.opened.found.directory)
    if config.num_layers > len(ranks[0]):
        raise CheckpointError(
            f"{where}: the config says {config.num_layers} layers, the file has {len(ranks[0])} tensors in all"
        )
    expected = expected_tensors(config)
    fused = fused_tensors(layout, config, expected, copies=False)
    check_ranks(layout, config, fused, len(ranks))
    added = _added_tensors(identified, config)
    expected = {**expected, **{tensor.parts[0]: info for tensor, info in added}}
    fused += [tensor for tensor, _ in added]
    known = {tensor.name for tensor in fused}
    if config.tie_embeddings:
        known |= {f"{alias.theirs}.{parameter}" for alias in layout.aliases for parameter in ("weight", "weight_scale")}
    named = [canonical_names(layout, known, rank, where) for rank in ranks]
    sources, extras, bare = zip(*named, strict=True)
    extra = list(dict.fromkeys(name for names in extras for name in names))
    names = tuple(tensor.name for tensor, _ in added)
    return Matched(identified, config, expected, fused, sources, extra, any(bare), names)


def _added_tensors(identified: Identified, config: GLMConfig) -> list[tuple[Fused, TensorInfo]]:
    """The tensors of the caller's own; none where no file has any of them."""
    infos = {} if identified.added is None else identified.added(config)
    layout, found = identified.layout, identified.opened.ranks[0]
    if not any(spelling in infos for name in found for spelling in layout.spellings(name)):
        return []
    stems = [name.rpartition(".") for name in infos]
    return [
        (Fused(name, Rule(stem, (stem,)), parameter, (name,), (info.shape,), config.head_dim), info)
        for (stem, _, parameter), (name, info) in zip(stems, infos.items(), strict=True)
    ]


# --- Checkpoint -------------------------------------------------------------------------------------------------------


def check(matched: Matched) -> Checkpoint:
    """The checkpoint, when every tensor is there and as the config says. Raises CheckpointError naming what is not."""
    identified, opened = matched.identified, matched.identified.opened
    layout, directory = identified.layout, opened.found.directory
    where = str(directory)
    plain, unknown = unexplained(layout, matched.extra)
    check_tensors(layout, matched.fused, matched.expected, matched.sources, unknown, where)
    notes = [*opened.notes, *identified.notes, *check_derived(layout, matched.config, opened.ranks, where)]
    if plain:
        notes.append(f"left out, it follows from the config: {names_text(plain, 2)}")
    matched, head_notes = _with_head(matched)
    notes += head_notes + check_copies(matched.fused, matched.sources, where)
    if not opened.adapter and (opened.found.config or {}).get("pre_seq_len"):
        notes.append(
            "the config has a pre_seq_len, but no P-Tuning prefix lies among the weights: it is an adapter of its own"
        )
    generation, doubts = read_generation_config(directory, matched.config.vocab_size, identified.generation)
    return Checkpoint(
        directory,
        identified.family,
        layout,
        matched.config,
        PublishedWeights(layout, matched.fused, matched.sources),
        len(opened.ranks),
        identified.judgement,
        generation,
        [message_text(note) for note in notes + doubts],  # they quote names out of the files
        tuple(file for rank in opened.files for file in rank),
        matched.bare,
        opened.adapter,
        identified.name,
        matched.added,
    )


def _with_head(matched: Matched) -> tuple[Matched, list[str]]:
    """The same, or matched as an untied model where a stored second copy of the embedding differs from it."""
    config, layout, sources = matched.config, matched.identified.layout, matched.sources[0]
    if not config.tie_embeddings or not layout.aliases:
        return matched, []
    (alias,) = layout.aliases
    table = next(tensor for tensor in matched.fused if alias.of in (part.rpartition(".")[0] for part in tensor.parts))
    stem = table.name.rpartition(".")[0]
    copies = [name for name in sources if name.rpartition(".")[0] == alias.theirs]
    if not copies:
        stored = f"{alias.theirs}.weight is not stored; the embedding is the head as well"
        return matched, [stored] if alias.stored else []
    if all(same_bytes(sources[name], sources.get(name.replace(alias.theirs, stem, 1))) for name in copies):
        return matched, []
    untied = match(matched.identified, replace(config, tie_embeddings=False))
    unknown = unexplained(layout, untied.extra)[1]
    where = str(matched.identified.opened.found.directory)
    check_tensors(layout, untied.fused, untied.expected, untied.sources, unknown, where)
    return untied, [f"{copies[0]} differs from the embedding: the model is loaded with a head of its own"]

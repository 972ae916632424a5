"""Continued pretraining: a run that starts from the weights of a model directory, in any published layout.

Only weights and shape come from there. The optimizer and the step are new, dropout is the recipe's, and the parameters
are float32 whatever the files hold.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from glmkit.adapters.adapter import all_kinds
from glmkit.adapters.directory import open_adapter
from glmkit.checkpoint.hub import local_directory
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.checkpoint.run_directory import model_directory
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import CheckpointError, ConfigError, GLMKitError, TokenizerError
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import TrainedTokenizer, has_tokenizer

DROPOUTS = ("embedding_dropout", "attention_dropout", "hidden_dropout")
# Fields that a run may set beside weights that were trained without them.
_FREE = (*DROPOUTS, "embedding_gradient_scale", "max_positions", "init", "init_std")
_TABLES = ("embed_positions", "embed_block_positions")


def open_start(source: str) -> Checkpoint:
    """The model directory (or name on the hub) to start from.

    Raises CheckpointError or ConfigError for an adapter, integer weights, and models that have no part A.
    """
    directory, _ = model_directory(local_directory(source))
    checkpoint = _opened(directory)
    # A plain pytorch_model.bin may be a prefix too; the names of an adapter's own files claim more than that.
    beside = any(kind.claims(directory) > 1 for kind in all_kinds().values())
    if checkpoint is None or checkpoint.adapter or beside:
        raise CheckpointError(
            f"--init-from {source}: an adapter is in there, and pretraining takes plain weights",
            step=f"for a LoRA: glm merge BASE {source} --output MERGED and --init-from MERGED; a P-Tuning prefix "
            "cannot be merged, start from its base",
            param="model.init_from",
        )
    config = checkpoint.config
    if config.quantization is not None:
        raise CheckpointError(
            f"--init-from {source}: INT{config.quantization.bits} weights cannot be trained",
            step="start from the floating-point release",
            param="model.init_from",
        )
    if config.mask != "prefix":
        raise ConfigError(
            f"--init-from {source}: {checkpoint.family.title} reads from left to right, blank infilling needs a model "
            "that reads part A in both directions",
            step="start from a model of blanks",
            param="model.init_from",
        )
    return checkpoint


def _opened(directory: Path) -> Checkpoint | None:
    """The weights of a directory; None where it holds an adapter instead. Raises CheckpointError or ConfigError."""
    try:
        return open_checkpoint(directory)
    except GLMKitError as error:
        try:
            open_adapter(directory)
        except GLMKitError:
            raise error.behind("--init-from: ") from error
        return None


def continued_config(source: str, fields: Mapping[str, object], special: SpecialIds | None) -> GLMConfig:
    """The shape of the weights in `source` with those of the recipe's fields that do not change weights.

    special: the ids of the tokenizer of the data. Raises ConfigError for a field that says another shape.
    """
    own = open_start(source).config
    for name, value in fields.items():
        if name not in _FREE and value is not None and value != getattr(own, name):
            raise ConfigError(
                f"model.{name} is {value!r}, the weights in {source} have {getattr(own, name)!r}",
                step="leave it out",
                param=f"model.{name}",
            )
    values = own.to_dict() | dict.fromkeys(DROPOUTS, 0.0) | {"special": None}
    values |= {name: value for name, value in fields.items() if name in _FREE and value is not None}
    config = GLMConfig.from_dict(values, source="model")
    return replace(config, special=special or own.special)


def check_tokenizer(source: str, tokenizer: Tokenizer, store: str | None) -> str | None:
    """A note where the weights come without a tokenizer, None where it is the one of the data.

    Raises TokenizerError when ids of the data mean something else to the model.
    """
    checkpoint = open_start(source)
    directory = checkpoint.directory
    own = (
        TrainedTokenizer.load(directory)
        if has_tokenizer(directory)
        else checkpoint.family.tokenizer(directory, checkpoint.config)
    )
    data = f"{store or 'the prepared data'} ({_name(tokenizer)}, {tokenizer.vocab_size:,} ids"
    if own is not None:
        if own.fingerprint() == tokenizer.fingerprint():
            return None
        raise TokenizerError(
            f"the tokenizer of {data}, fingerprint {tokenizer.fingerprint()[:12]}) is not that of {source} "
            f"({_name(own)}, {own.vocab_size:,} ids, fingerprint {own.fingerprint()[:12]})",
            step=f"prepare the data with --tokenizer {source}",
            param="model.init_from",
        )
    rows, special = checkpoint.config.vocab_size, checkpoint.config.special
    if tokenizer.vocab_size > rows or special not in (None, tokenizer.special):
        what = f"{rows:,} rows" if tokenizer.vocab_size > rows else "other special ids"
        raise TokenizerError(
            f"the tokenizer of {data}) is not that of {source}, which has {what} and no tokenizer files",
            step="put the model's tokenizer files beside its weights and prepare the data with --tokenizer",
            param="model.init_from",
        )
    return f"{source} has no tokenizer: its {rows:,} ids are taken to be those of the data"


def load_start(model: GLM, source: str) -> list[str]:
    """Put the weights of `source` into an initialised model; what was done, one line each.

    Position tables of another length share their first rows; rows that the files do not have stay as initialised.
    """
    parts = load_parts(source, device="cpu", dtype="float32")
    stored, own = parts.model.state_dict(), model.state_dict()
    count = sum(p.numel() for p in parts.model.parameters())
    start = f"weights of {source} ({parts.layout}, {count:,} parameters, as float32); optimizer and step are new"
    notes = [start, *parts.notes]
    for name, tensor in own.items():
        rows = min(len(tensor), len(stored[name])) if _is_table(name) else len(tensor)
        if rows < len(tensor):
            notes.append(f"{name}: rows {rows:,} to {len(tensor) - 1:,} are not in {source} and start at random")
        elif rows < len(stored[name]):
            notes.append(f"{name}: the last {len(stored[name]) - rows:,} rows of {source} are left out")
        tensor[:rows].copy_(stored[name][:rows])
    return notes


def _is_table(name: str) -> bool:
    return name.split(".")[-2] in _TABLES


def _name(tokenizer: Tokenizer) -> str:
    return str(getattr(tokenizer, "kind", type(tokenizer).__name__))

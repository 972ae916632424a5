"""The flags of P-Tuning v2 beside a prefix that is there: its own files decide, other values are an error."""

from pathlib import Path

from glmkit.adapters.adapter_files import AdapterFiles
from glmkit.adapters.directory import open_adapter
from glmkit.checkpoint.run_directory import model_directory, named_checkpoint
from glmkit.errors import CheckpointError, RequestError

from .command_line import Given

_TABLES = ("embedding.weight", "0.weight", "prompt_embeddings")  # ends of the names of a prefix's table
_PROJECTION = ("trans.", "1.weight")


def check_prefix_flags(given: Given, directory: str | None) -> None:
    """Raise RequestError when --pre_seq_len or --prefix_projection speak of another prefix than that in `directory`.

    What is no directory of an adapter here, such as a name on a hub, is left to loading.
    """
    if directory is None or not {"pre_seq_len", "prefix_projection"} & given.named:
        return
    folder = named_checkpoint(Path(directory))
    if not folder.is_dir():
        return
    try:
        files = open_adapter(model_directory(folder)[0])
    except CheckpointError:
        return
    rows = _rows(files)
    asked = given.whole("pre_seq_len")
    if asked is not None and rows != asked:
        there = f"has a prefix of {rows}" if rows is not None else f"holds an adapter of the kind {files.kind}"
        raise RequestError(
            f"--pre_seq_len is {asked} and {directory} {there}",
            step="leave it out: the files decide",
            param="pre_seq_len",
        )
    projected = any(part in name for name in files.tensors for part in _PROJECTION)
    if given.values["prefix_projection"] and rows is not None and not projected:
        raise RequestError(
            f"--prefix_projection is True and the prefix in {directory} has none",
            step="leave it out: the files decide",
            param="prefix_projection",
        )


def _rows(files: AdapterFiles) -> int | None:
    """The length of a prefix; None for another adapter."""
    tables = (tensor for name, tensor in files.tensors.items() if name.endswith(_TABLES))
    table = next(tables, None)
    return None if table is None or table.dim() != 2 else len(table)

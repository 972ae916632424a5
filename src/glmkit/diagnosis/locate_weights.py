"""Search for a directory's weights: beside the config, in the folder that `latest` names, or one level too deep."""

from pathlib import Path

from glmkit.checkpoint.detect import models_below, read_tag, tag_folders
from glmkit.checkpoint.foreign import unread_files
from glmkit.errors import names_text

from .finding import Finding
from .headers import attempt
from .listing import Listing, list_directory

_MOST_FOLDERS = 50  # sub-directories that are looked into for a hint


def find_weights(listing: Listing) -> tuple[Listing, list[Finding]]:
    """(the listing of the directory that holds the weight files, findings on the way there).

    Files beside the config come first, then the folder that a tag file names, then the only folder with rank files.
    Without any weights it is the listing itself.
    """
    where = str(listing.directory)
    if listing.of("weights", "index"):
        return listing, []
    found, _ = attempt(lambda: read_tag(listing.directory), where)
    folders = [name for name in listing.folders[:_MOST_FOLDERS] if _has_ranks(listing.directory / name)]
    if found is None:
        if len(folders) == 1:
            return _inside(listing, folders[0])
        return listing, []
    tag, source = found[0], found[1].name
    for name in tag_folders(tag):
        if name in listing.folders:
            inside, findings = _inside(listing, name)
            others = [other for other in folders if other != name]
            if others:
                what = f"the weights are those in {name}; {names_text(others)} lie beside it and are not used"
                findings = [*findings, Finding("note", what, where)]
            return inside, findings
    what = f"{source} names the folder {tag}, which is not here"
    step = f"write the name of one that is here ({names_text(folders)}) into {source}" if folders else "copy it here"
    return listing, [Finding("error", what, where, f"download {tag}, or {step}")]


def _inside(listing: Listing, name: str) -> tuple[Listing, list[Finding]]:
    inside, finding = attempt(lambda: list_directory(listing.directory / name), listing.directory / name)
    return (listing if inside is None else inside), ([] if finding is None else [finding])


def _has_ranks(path: Path) -> bool:
    """True where Megatron's or SAT's rank files lie: theirs alone lie one level below the config."""
    inside, _ = attempt(lambda: list_directory(path), path)
    return inside is not None and any(entry.name.startswith("mp_rank_") for entry in inside.of("weights"))


def nothing_here(listing: Listing) -> Finding:
    """The error of a directory without weights, with the sub-directory that was probably meant."""
    where = str(listing.directory)
    inner = models_below(listing.directory)
    if inner:
        what = f"no weights lie here, but in {names_text(map(str, inner), 3)}"
        steps_of_one_run = len({path.name.rstrip("0123456789") for path in inner}) == 1
        step = f"give {inner[-1]} instead" if steps_of_one_run else f"give one of them, such as {inner[0]}"
        return Finding("error", what, where, step)
    if not listing.entries and not listing.folders:
        return Finding("error", "the directory is empty", where, "download or copy a model into it")
    if (unread := unread_files(listing.directory)) is not None:
        return Finding("error", f"no weights, but {unread.what}", where, unread.step)
    if listing.of("config", "index"):
        what = "a configuration, but no weight files"
        step = "download them too (pytorch_model*.bin, *.safetensors, *.pdparams or mp_rank_*_model_states.pt)"
        return Finding("error", what, where, step)
    what = f"no model: {len(listing.entries)} other files and {len(listing.folders)} folders"
    return Finding("error", what, where, "give a directory with weight files")

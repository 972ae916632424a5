"""The examination of one directory, from its list of files to the command to run next."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glmkit.checkpoint.configure import ConfigLike, read_given
from glmkit.checkpoint.detect import detect, models_below
from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.foreign import foreign_format, unread_files
from glmkit.checkpoint.open import Checkpoint, Identified, check, identify, match, open_files
from glmkit.checkpoint.run_directory import is_checkpoint, is_run, model_directory
from glmkit.config import GLMConfig
from glmkit.devices import accelerator, available_memory
from glmkit.errors import CheckpointError, names_text
from glmkit.families.family import config_beside, first_command, preset, preset_names
from glmkit.files import SAMPLE
from glmkit.quant import compute_text

from .adapter_check import check_adapter, check_base, check_inside, holds_adapter, local_folder
from .check_ranks import check_ranks
from .config_alone import config_file_alone, refuse_impossible
from .contents import (
    check_checkpoint,
    check_company,
    check_contents,
    check_numbers,
    check_run,
    check_sibling,
    check_store,
    is_store,
)
from .finding import Finding, has_errors, printable
from .forecast import check_fit, forecast, quantize_to_fit
from .headers import Headers, attempt, open_headers
from .listing import Listing, list_directory
from .locate_weights import find_weights, nothing_here
from .report import Report
from .shards import check_shards
from .sizes import sizes
from .suggest_config import check_rows, named_shapes, stored_types, suggest_config
from .vocabulary import (
    check_generation,
    check_identity,
    check_tokenizer,
    closest_preset,
    titles_of_tokenizer,
    vocabulary_alone,
)

_TWO_RELEASES = "weights and config may be of different releases; take both from one"
_ALL_RANKS = "a rank may be missing, and each holds a part of every matrix; copy all of them, of one release"
_CORRECT_ADAPTER = "correct the settings beside the adapter, or copy it again"
_CORRECT = "correct that in the config file, or download it again"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

Progress = Callable[[int, int], None]


def examine(
    directory: Path,
    *,
    config: ConfigLike | None = None,
    family: str | None = None,
    deep: bool = False,
    check: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Examine `directory`. Never raises for what lies in it: every problem becomes a finding.

    config: for directories without one, a preset's name or a file. family: where several share a layout. deep: read
    every number; `progress` then gets (bytes read, bytes in all). check: compare every byte with its hash where there
    are hashes, as deep does too; without, large files are compared in part.
    """
    report = Report(printable(str(directory)))
    listing, finding = attempt(lambda: list_directory(directory), directory)
    if listing is None:
        assert finding is not None
        report.findings.append(finding)
        return report
    _, finding = attempt(
        lambda: _look(report, listing, _Orders(config, family, deep, check or deep, progress)), directory
    )
    report.findings += [] if finding is None else [finding]
    report.facts = printable(report.facts)
    return report


@dataclass(frozen=True)
class _Orders:
    config: ConfigLike | None
    family: str | None
    deep: bool
    whole: bool
    progress: Progress

    @property
    def most(self) -> int | None:
        """Bytes of a file that are compared with its hashes."""
        return None if self.whole else SAMPLE


def _look(report: Report, listing: Listing, orders: _Orders) -> None:
    where = listing.directory
    if is_store(listing):
        check_store(report, listing, orders.most)
        return
    if is_checkpoint(where):
        report.findings += check_checkpoint(where, orders.most)[0]
        _look_at_model(report, listing, orders)
    elif is_run(where) and not listing.of("weights", "index"):
        newest = check_run(report, where, orders.most)
        if newest is not None:
            _look_at_model(report, list_directory(newest), orders)
            report.kind = "run"
            if not report.usable:
                run = shlex.quote(report.directory)
                report.next_command = f"glm pretrain {run}/recipe.yaml --output {run} --resume auto"
    else:
        inner, remarks = model_directory(where)
        report.findings += [Finding("note", remark, str(where)) for remark in remarks]
        _look_at_model(report, listing if inner == where else list_directory(inner), orders)


def _look_at_model(report: Report, listing: Listing, orders: _Orders) -> None:
    report.findings += [*check_sibling(listing.directory), *check_company(listing)]
    place, wrong_place = find_weights(listing)
    report.findings += wrong_place
    detected, _ = attempt(lambda: detect(listing.directory), place.directory)
    if detected is not None:  # several copies may lie here, one of them is read
        used = {path.name for rank in detected.ranks for path in rank}
        listing, place = (folder.reading(used) for folder in (listing, place))
    elif not listing.of("adapter") and (other := foreign_format(listing.directory)) is not None:
        report.findings.append(Finding("error", f"{other.place} holds {other.what}", str(other.place), other.step))
        return
    bad: set[str] = set()
    for folder in [listing] if place.directory == listing.directory else [listing, place]:
        found, names = check_contents(folder)
        report.findings += found
        bad |= names
    headers = open_headers(entry for entry in place.of("weights") if entry.name not in bad)
    try:
        report.findings += headers.findings
        _, settings = config_beside(listing.directory)
        if holds_adapter(place, headers):
            _adapter(report, place)
        elif place.of("weights") or place.of("index") or detected is not None:
            report.kind = "model"
            found = [*check_shards(place, headers), *check_ranks(place, headers, settings)]
            if not has_errors(found):
                found += check_rows(place, headers, _rows_asked(settings, orders.config))
            report.findings += found
            unread = bad & {entry.name for entry in place.of("weights", "index")}
            incomplete = bool(unread) or has_errors([*found, *headers.findings])
            _model(report, listing, place, headers, orders, incomplete=incomplete)
        elif not has_errors(report.findings):
            where = listing.directory
            others = listing.named("config.json") or models_below(where) or unread_files(where) is not None
            tokenizers = [] if others else titles_of_tokenizer(listing)
            report.findings.append(vocabulary_alone(listing, tokenizers) if tokenizers else nothing_here(listing))
        if orders.deep:
            report.findings += check_numbers(headers, orders.progress)
    finally:
        headers.close()


def _rows_asked(settings: Mapping[str, object], config: ConfigLike | None) -> int | None:
    """Rows of the word table that the config asks for, where that is easy to see."""
    if isinstance(config, GLMConfig):
        return config.vocab_size
    if isinstance(config, str) and config in preset_names():
        return preset(config).vocab_size
    found = settings.get("vocab_size", settings.get("padded_vocab_size"))
    return found if config is None and type(found) is int else None


def _adapter(report: Report, place: Listing) -> None:
    report.kind = "adapter"
    facts, findings = check_adapter(place)
    base = local_folder(facts.get("base"))
    config, family = None, None
    if base is None:
        judgement, config = config_file_alone(place.directory) or (None, None)
        family = None if judgement is None else judgement.family
    elif not has_errors(findings):
        config, family, more = check_base(place.directory, base)
        findings += more
    report.facts |= facts | ({} if family is None else {"family": family.name, "title": family.title})
    report.findings += _new_errors(findings, report.findings)
    if not report.usable:
        return
    if base is not None and (config is None or family is None or check_tokenizer(base, config, family)[0] is None):
        report.next_command = f"glm doctor {shlex.quote(str(base))}"
    else:
        report.next_command = _adapter_command(report.directory, base or facts.get("base"), config)


def _model(
    report: Report, listing: Listing, place: Listing, headers: Headers, orders: _Orders, *, incomplete: bool
) -> None:
    report.facts |= _file_facts(list(headers.files.values()))
    where = listing.directory

    identified: Identified | None = None

    def walk() -> Checkpoint | None:
        nonlocal identified
        refuse_impossible(config_beside(where)[1], str(where))
        try:
            identified = identify(open_files(detect(where)), read_given(orders.config), orders.family)
            return check(match(identified))
        except CheckpointError:
            if incomplete:  # it would only say, less precisely, what was found already
                return None
            raise

    opened, finding = attempt(walk, where)
    if opened is not None:
        _describe(report, opened, listing, place, orders)
        return
    if finding is not None and not _already_said(finding, report.findings):
        report.findings.append(_with_step(finding, place))
    report.findings += suggest_config(listing, place, headers)
    alone = (
        config_file_alone(listing.directory, [name for name, _ in named_shapes(headers)], family=orders.family)
        if identified is None
        else (identified.judgement, identified.config)
    )
    if alone is not None:
        judgement, config = alone
        report.facts |= {"family": judgement.family.name, "title": judgement.family.title}
        if judgement.doubt is not None:
            report.findings.append(Finding("warning", judgement.doubt, str(where), judgement.step))
        shape, _ = attempt(lambda: {} if config is None else _shape_facts(config), where)
        report.facts |= shape or {}


def _file_facts(files: Sequence[TensorFile]) -> dict[str, object]:
    return {
        "files": len(files),
        "file_bytes": sum(Path(file.path).stat().st_size for file in files),
        "stored": stored_types(files),
        "tensor_bytes": sum(file.nbytes for file in files),
    }


def _shape_facts(config: GLMConfig) -> dict[str, object]:
    name, differing = closest_preset(config)
    return {
        "closest_preset": name or None,
        "differs_in": differing or None,
        "parameters": sizes(config).total,
        "layers": config.num_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "quantization": None if config.quantization is None else f"int{config.quantization.bits}",
        **({} if config.quantization is None else {"scales": config.quantization.about, "compute": compute_text()}),
    }


def _describe(report: Report, opened: Checkpoint, listing: Listing, place: Listing, orders: _Orders) -> None:
    config, family = opened.config, opened.family
    others = [entry for entry in place.of("unread") if entry.is_whole and not entry.name.endswith(".json")]
    if others:
        what = f"other files of weights, not read: {names_text(entry.name for entry in others)}"
        report.findings.append(Finding("note", what, str(place.directory)))
    counted = sizes(config)
    report.facts |= _file_facts(opened.files)
    report.facts |= {
        "family": family.name,
        "title": family.title,
        "layout": opened.layout.name,
        "ranks": opened.ranks,
        **_shape_facts(config),
    }
    what = f"{len(opened.weights.names())} tensors: all names and shapes are those of the config"
    report.findings.append(Finding("ok", what, str(opened.directory)))
    report.findings += [Finding("note", note, str(opened.directory)) for note in opened.notes]
    if opened.adapter:
        report.findings += check_inside(opened)
    elif listing.of("adapter"):
        what = f"an adapter lies beside the model ({names_text(entry.name for entry in listing.of('adapter'))})"
        report.findings.append(Finding("note", what, str(listing.directory), "it is used only when it is asked for"))
    report.findings += check_identity(opened)
    report.findings += check_generation(config, family, listing)
    tokenizer, findings = check_tokenizer(listing.directory, config, family)
    report.findings += findings
    report.free_ram = available_memory()
    kind = accelerator()
    report.free_gpu = None if kind is None else available_memory(kind)
    stored = sum(opened.weights.info(name).nbytes for name in opened.weights.names())
    report.forecast = forecast(config, counted, stored, ram=report.free_ram, gpu=report.free_gpu)
    report.findings += check_fit(report.forecast)
    if report.usable:
        report.next_command = _next_command(report, config, orders, speaks=tokenizer is not None)


def _next_command(report: Report, config: GLMConfig, orders: _Orders, *, speaks: bool) -> str:
    given = f" --config {shlex.quote(str(orders.config))}" if isinstance(orders.config, str | Path) else ""
    if not speaks:
        return f"glm info {shlex.quote(report.directory)}{given}"
    bits = quantize_to_fit(report.forecast) if config.quantization is None else ""
    given += f" --quantize {bits}" if bits else ""
    given += f" --family {shlex.quote(orders.family)}" if orders.family else ""
    return _call(config, shlex.quote(report.directory) + given)


# --- what to do next --------------------------------------------------------------------------------------------------


def _with_step(finding: Finding, place: Listing) -> Finding:
    """An error of opening weights, with what to do about it."""
    if finding.kind == "bad_config":  # the weights are not to blame
        step = _CORRECT
    elif finding.next_step:
        step = finding.next_step.replace("config=", "--config")
    else:
        step = _ALL_RANKS if any(entry.rank is not None for entry in place.of("weights")) else _TWO_RELEASES
    return replace(finding, next_step=step)


def _new_errors(found: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """Findings about an adapter, each error with a step, without errors that earlier ones state more precisely."""
    return [
        replace(finding, next_step=finding.next_step or _CORRECT_ADAPTER) if finding.level == "error" else finding
        for finding in found
        if finding.level != "error" or not _already_said(finding, earlier)
    ]


def _already_said(finding: Finding, earlier: Iterable[Finding]) -> bool:
    """True when an earlier error is about a file of this one, so that it says the same more precisely."""
    return any(set(finding.files) & set(other.files) for other in earlier if other.level == "error")


def _adapter_command(directory: str, base: object, config: GLMConfig | None) -> str:
    """A call of the model with its adapter. base: its directory, or what the settings call it."""
    named = str(base) if isinstance(base, Path) or _HUB_NAME.fullmatch(str(base)) else "MODEL"
    size = named.rpartition("/")[2].lower()
    if config is None and size in preset_names():
        config = preset(size)
    arguments = f"{shlex.quote(named)} --adapter {shlex.quote(directory)}"
    return _call(config, arguments) if config is not None else f'glm fill {arguments} "… [MASK] …"'


def _call(config: GLMConfig, arguments: str) -> str:
    """The verb that a model answers to, its arguments and a text."""
    return first_command(config.family, arguments, causal=config.mask == "causal")

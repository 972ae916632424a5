"""Reading LoRA files: from stored tensors to one update per published module, whatever code saved them.

Legend: I input channels, O output channels, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from glmkit.adapters.adapter_files import PADDLE, PEFT_CONFIG, PEFT_WEIGHTS, AdapterFiles, check_numbers
from glmkit.adapters.naming import bare_name, ending
from glmkit.errors import CheckpointError, ConfigError

from .layer import LowRank, grouped_to_dense
from .settings import PADDLE_CONFIG, LoraSettings, paddle_settings, peft_settings

TOKENS, TOKEN_ADAPTER = "trainable_tokens_delta", ".token_adapter"  # PEFT: rows that stand for a table's own


@dataclass(frozen=True)
class LoraContents:
    """The contents of a LoRA directory: an update per stem of its own naming, and tensors that replace the base's.

    `whole`: (stem, parameter) -> tensor as stored, for `bias`, `modules_to_save` and the rows of single tokens, whose
    numbers `token_rows` has by stem. `names`: stem -> a stored name,
    for messages.
    """

    path: Path
    settings: LoraSettings
    updates: Mapping[str, LowRank]
    whole: Mapping[tuple[str, str], Tensor]
    names: Mapping[str, str]
    notes: tuple[str, ...]
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_lora(files: AdapterFiles, alpha: float | None = None) -> LoraContents:
    """Interpret the tensors of a LoRA directory.

    alpha: for directories without settings, which `mymusise/ChatGLM-Tuning` leaves; the rank is then that of the
    matrices. Raises CheckpointError naming the tensor or the setting.
    """
    settings = _settings(files, alpha)
    matrices: dict[str, dict[str, Tensor]] = {}
    whole: dict[tuple[str, str], Tensor] = {}
    names: dict[str, str] = {}
    parsed = {name: _parse(name, files.weights) for name in files.tensors}
    adapters = {adapter for _, which, adapter in parsed.values() if which in ("lora_A", "lora_B")}
    if len(adapters) > 1:
        raise CheckpointError(
            f"{files.weights} holds several adapters ({', '.join(sorted(adapters))})", step="save one alone"
        )
    token_rows: dict[str, tuple[int, ...]] = {}
    for name, (stem, which, _) in parsed.items():
        if which == TOKENS:
            stem, which = stem.removesuffix(TOKEN_ADAPTER), "weight"
            token_rows[stem] = _rows(stem, files.tensors[name], settings, f"{files.weights}: {name}")
        names.setdefault(stem, name)
        pair = matrices.setdefault(stem, {}) if which in ("lora_A", "lora_B") else {}
        if (stem, which) in whole or which in pair:
            raise CheckpointError(f"{files.weights}: {stem} has two {which}, one of them called {name}")
        if which in ("lora_A", "lora_B"):
            pair[which] = files.tensors[name]
        else:
            whole[stem, which] = files.tensors[name]
    if not matrices:
        raise CheckpointError(f"{files.weights} holds no LoRA matrices, but {next(iter(names.values()))}")
    updates = {stem: _update(stem, pair, settings, files) for stem, pair in matrices.items()}
    notes = list(settings.notes)
    for target in settings.targets:
        if not ending(target, updates):
            notes.append(f"target_modules names {target}, for which the file has nothing")
    for target in settings.saved:
        if not ending(target, (stem for stem, _ in whole)):
            notes.append(f"modules_to_save names {target}, for which the file has nothing; the base's own is used")
    idle = [stem for stem, update in updates.items() if not update.b_OR.any()]
    if len(idle) == len(updates):
        notes.append("the adapter has no effect: lora_B is zero everywhere, as before the first training step")
    elif idle:
        notes.append(f"lora_B is zero in {len(idle)} of {len(updates)} modules, {idle[0]} among them")
    return LoraContents(files.weights, settings, updates, whole, names, tuple(notes), token_rows)


def _rows(stem: str, values: Tensor, settings: LoraSettings, source: str) -> tuple[int, ...]:
    """The rows of a table that single tokens' values are for."""
    rows = next((rows for name, rows in settings.token_rows.items() if not name or f".{stem}".endswith(f".{name}")), ())
    if len(rows) != len(values) or len(set(rows)) != len(rows):
        raise CheckpointError(
            f"{source} holds {len(values)} rows, trainable_token_indices of the settings names {len(rows)}",
            step="copy the settings that were saved with it",
        )
    return rows


def _settings(files: AdapterFiles, alpha: float | None) -> LoraSettings:
    config = PADDLE_CONFIG if files.origin == PADDLE else PEFT_CONFIG
    path = files.folder / config
    if files.settings is not None:
        if alpha is not None:
            raise CheckpointError(
                f"{path} states lora_alpha, so alpha={alpha:g} would have no effect", step="leave it out"
            )
        return (paddle_settings if files.origin == PADDLE else peft_settings)(files.settings, str(path))
    if alpha is None:
        also = "" if files.weights.name in PEFT_WEIGHTS else f"give adapter={files.folder} and its alpha, "
        raise CheckpointError(
            f"{path} is missing, so the adapter's scale is not known",
            step=f"{also}give alpha=32 for mymusise/ChatGLM-Tuning, "
            "or write into that file what the training used: peft_type, r and lora_alpha",
        )
    note = f"{config} is missing: rank from the matrices, alpha {alpha:g} as given"
    return LoraSettings(alpha=float(alpha), notes=(note,))


def _parse(name: str, path: Path) -> tuple[str, str, str]:
    """(stem, "lora_A" | "lora_B" | parameter, name of the adapter or "") of a stored name."""
    bare = bare_name(name)
    stem, mark, rest = bare.partition(".lora_")
    if not mark:
        head, _, parameter = bare.rpartition(".")
        if head.endswith(f".{TOKENS}"):  # with the adapter's name behind it
            head, parameter = head.removesuffix(f".{TOKENS}"), TOKENS
        return head, parameter, ""
    which, *tail = rest.split(".")
    if tail and tail[-1] == "weight":
        tail = tail[:-1]
    if which not in ("A", "B") or len(tail) > 1 or tail == ["bias"]:
        what = "LoRA on an embedding" if which.startswith("embedding") else f"the tensor lora_{rest}"
        raise CheckpointError(
            f"{path}: {name}: {what} is not supported", step="merge the adapter with the tool that made it"
        )
    return stem, f"lora_{which}", tail[0] if tail else ""


def _update(stem: str, pair: Mapping[str, Tensor], settings: LoraSettings, files: AdapterFiles) -> LowRank:
    source = f"{files.weights}: {stem}"
    for which in ("lora_A", "lora_B"):
        check_numbers(source, pair, which)
    a_RI, b_OR, grouped = pair["lora_A"], pair["lora_B"], False
    if b_OR.dim() == 3 and b_OR.shape[2] == 1:  # PEFT 0.2: the weight of a convolution of width 1
        b_OR, grouped = b_OR[:, :, 0], True
    if a_RI.dim() != 2 or b_OR.dim() != 2 or not (a_RI.numel() and b_OR.numel()):
        raise CheckpointError(
            f"{source}: lora_A {tuple(a_RI.shape)} and lora_B {tuple(b_OR.shape)} are no matrices; a sharded run must "
            f"gather them before saving"
        )
    if files.origin == PADDLE:
        # (I,R) and (R,O); the first LoRAMergedLinear, which knew no head_dim, kept B as (O',R).
        a_RI, grouped = a_RI.t(), settings.enabled is not None
        b_OR = b_OR if grouped and settings.head_dim is None else b_OR.t()
    stated = settings.rank_of(stem)
    rank = stated
    if grouped and not (settings.enabled is None and b_OR.shape[1] == a_RI.shape[0]):
        if settings.enabled is None:
            raise CheckpointError(
                f"{source}: lora_B is grouped, but no enable_lora says which parts", step=f"add it to {PEFT_CONFIG}"
            )
        rank = b_OR.shape[1] if stated is None else stated
        expected = rank * sum(settings.enabled)
        try:
            b_OR = grouped_to_dense(a_RI, b_OR, settings.enabled, settings.head_dim)
        except ConfigError as error:
            raise error.behind(f"{source}: ", CheckpointError) from None
    else:
        expected = rank = a_RI.shape[0] if stated is None else stated
    if a_RI.shape[0] != expected or b_OR.shape[1] != expected:
        raise CheckpointError(
            f"{source}: lora_A {tuple(a_RI.shape)} and lora_B {tuple(b_OR.shape)} have another rank than the settings "
            f"say, {expected}"
        )
    return LowRank(a_RI.contiguous(), b_OR.contiguous(), settings.scale_of(stem, rank))

"""Recipes: found by path or name, read, and overlaid with `--section.key value` and the well-known short names."""

from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import get_type_hints

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError, closest, shorten
from glmkit.objective.options import PRESETS
from glmkit.small_files import parse_yaml, read_small

from .continued import DROPOUTS
from .recipe_config import TrainConfig
from .schema import Leaf, leaves, readable

# Names people know from the original scripts and from other trainers -> ours.
ALIASES = {
    "per_device_train_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "batch_size": "training.batch_size",
    "max_steps": "training.max_steps",
    "train_iters": "training.max_steps",
    "num_train_epochs": "training.num_epochs",
    "epochs": "training.num_epochs",
    "recompute": "training.recompute",
    "seed": "training.seed",
    "max_grad_norm": "training.clip_grad",
    "clip_grad": "training.clip_grad",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.adam_beta1",
    "adam_beta2": "optimizer.adam_beta2",
    "adam_eps": "optimizer.adam_eps",
    "adam_epsilon": "optimizer.adam_eps",
    "warmup_ratio": "schedule.warmup_ratio",
    "warmup": "schedule.warmup_ratio",
    "warmup_steps": "schedule.warmup_steps",
    "lr_scheduler_type": "schedule.lr_decay_style",
    "lr_decay_style": "schedule.lr_decay_style",
    "lr_decay_iters": "schedule.lr_decay_iters",
    "lr_decay_ratio": "schedule.lr_decay_ratio",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "eval_steps": "evaluation.every",
    "seq_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "block_size": "data.sequence_length",
    "dataloader_num_workers": "data.workers",
    "global_batch_size": "training.batch_size",
    "micro_batch_size": "training.micro_batch_size",
    "save_interval": "checkpoint.every",
    "eval_interval": "evaluation.every",
    "output_dir": "output.directory",
}
SWITCHES = {
    "bf16": ("training.precision", "bf16"),
    "fp16": ("training.precision", "fp16"),
    "gradient_checkpointing": ("training.recompute", "true"),
}
# Options of other trainers that have no key here -> what takes their place.
FOREIGN = {
    "model_name_or_path": "--init-from DIR starts from weights, --model.preset NAME from a published size",
    "config_name": "--model.preset takes a published size, a model directory or a config.json",
    "tokenizer_name": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "tokenizer": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "tokenizer_name_or_path": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "train_file": "glm prepare FILE --output DIR, then --data DIR",
    "validation_file": "glm prepare --validation-share takes validation documents out of the data",
    "validation_split_percentage": "glm prepare --validation-share takes validation documents out of the data",
    "dataset_name": "glm prepare NAME --output DIR, then --data DIR",
    "data_path": "--data DIR; several: --data DIR=WEIGHT for each",
    "data_dir": "--data DIR",
    "split": "glm prepare --validation-share takes validation documents out of the data",
    "logging_steps": "every step is logged, in metrics.jsonl of the run directory",
    "log_interval": "every step is logged, in metrics.jsonl of the run directory",
    "logging_dir": "metrics.jsonl and TensorBoard's events (--output.tensorboard true) lie in the run directory",
    "tensorboard_dir": "metrics.jsonl and TensorBoard's events (--output.tensorboard true) lie in the run directory",
    "report_to": "metrics.jsonl is always written, TensorBoard's events with --output.tensorboard true",
    "do_train": "leave it out: glm pretrain trains",
    "do_eval": "leave it out: --evaluation.every N sets the rhythm",
    "eval_strategy": "--evaluation.every N sets the rhythm, 0 = never",
    "evaluation_strategy": "--evaluation.every N sets the rhythm, 0 = never",
    "eval_iters": "--evaluation.rows N sets the rows of an evaluation",
    "per_device_eval_batch_size": "leave it out: rows of an evaluation depend on --evaluation.rows alone",
    "save_strategy": "--checkpoint.every N sets the rhythm",
    "overwrite_output_dir": "a run is never overwritten: --resume auto continues it, another --output starts anew",
    "resume_from_checkpoint": "--resume auto, or --resume DIR",
    "load": "--resume auto or DIR continues a run, --init-from DIR starts from weights",
    "save": "--output DIR",
    "optim": "--optimizer.name adamw or muon",
    "cutoff_len": "--seq_length N",
    "mlm_probability": "--objective.bert_ratio X is the share of masked tokens",
    "noise_density": "--objective.bert_ratio X is the share of masked tokens",
    "streaming": "leave it out: the data is mapped and never read as a whole",
    "stage": "leave it out: glm pretrain fills blanks, and nothing else is trained here",
    "finetuning_type": "leave it out: glm pretrain trains all weights",
    "lora_rank": "glm pretrain trains all weights, no adapters",
    "lora_alpha": "glm pretrain trains all weights, no adapters",
    "pre_seq_len": "glm pretrain trains all weights, no adapters",
    "quantization_bit": "weights in integers cannot be trained; leave it out",
    "zero_stage": "leave it out: --nproc N, or torchrun, starts several processes",
    "deepspeed": "leave it out: --nproc N, or torchrun, starts several processes",
    "local_rank": "leave it out: --nproc N, or torchrun, starts several processes",
    "num_layers": "--model.num_layers N",
    "hidden_size": "--model.hidden_size N",
    "vocab_size": "--model.vocab_size N; without it the tokenizer's",
}

# Two ways to say one thing: saying one on the command line replaces the recipe's other.
_EITHER = [
    ("training.max_steps", "training.max_samples"),
    ("training.max_steps", "training.num_epochs"),
    ("training.max_samples", "training.num_epochs"),
    ("training.batch_size", "training.gradient_accumulation_steps"),
    ("schedule.lr_decay_iters", "schedule.lr_decay_samples"),
    ("schedule.warmup_ratio", "schedule.warmup_samples"),
    ("schedule.warmup_ratio", "schedule.warmup_steps"),
    ("schedule.warmup_steps", "schedule.warmup_samples"),
    ("evaluation.rows", "evaluation.batches"),
]

# Keys that set a whole section: on the command line each takes the place of everything that was set in its section
# before it, by the recipe or further left, but for these.
_WHOLE: dict[str, tuple[str, ...]] = {
    "model.preset": ("vocab_multiple",),
    "model.init_from": ("vocab_multiple", *DROPOUTS),
    "objective.preset": (),
}


def recipe_files() -> dict[str, Path]:
    """The recipes that come with glmkit, by name: beside the modules once installed, at the top of a source tree."""
    packaged = Path(__file__).resolve().parents[1] / "recipes"
    directory = packaged if packaged.is_dir() else packaged.parents[2] / "recipes"
    return {path.stem: path for path in sorted(directory.glob("*/*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """The file that `source` names, a path or one of `recipe_files`. Raises ConfigError."""
    path, known = Path(source), recipe_files()
    if path.is_file():
        return path
    if str(source) in known:
        return known[str(source)]
    near = closest(path.stem, known)
    step = f"{f'did you mean {near!r}? ' if near else ''}known are {', '.join(known)}"
    raise ConfigError(f"{source} is neither a file nor the name of a recipe", step=step)


def read_recipe(source: str | Path, overrides: Mapping[str, object] | None = None) -> TrainConfig:
    """The TrainConfig of a YAML file (or of a recipe by name) with `overrides` (dotted key -> text or value) over it.

    Raises ConfigError for an unknown recipe, YAML that does not parse, unknown keys and wrong values; OSError for an
    unreadable file.
    """
    path = find_recipe(source)
    values = parse_yaml(read_small(path, ConfigError), str(path), ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no recipe; expected sections such as `model:` and `training:`")
    try:
        return TrainConfig.from_dict(merge(values, overrides or {}))
    except ConfigError as error:
        blamed = " with the options given" if overrides and _is_sound(values) else ""
        raise error.behind(f"{path}{blamed}: ") from error


def _is_sound(values: Mapping[str, object]) -> bool:
    """True for a recipe in which nothing is wrong by itself."""
    try:
        TrainConfig.from_dict(merge(values, {}))
    except ConfigError:
        return False
    return True


def merge(values: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """`values` (sections) with dotted `overrides` over them, in order; text is read as YAML: `null`, `true`, `[a, b]`.

    The one rule of precedence: an override wins over the recipe, and a preset among them takes the place of what its
    section had before it. Inside a section as it comes out, single keys change the preset.
    """
    if overrides.get("model.preset") is not None and overrides.get("model.init_from") is not None:
        raise ConfigError("give one of model.preset (a shape) and model.init_from (weights and their shape)")
    merged: dict[str, object] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        target = merged.setdefault(section, {})
        if target is None:
            target = merged[section] = {}
        if not isinstance(target, dict):
            raise ConfigError(f"{section} is {target!r}; it must be a section of `key: value` lines")
        parsed = _parse(dotted, value)
        if dotted in _WHOLE and parsed is not None:
            target = merged[section] = {name: target[name] for name in _WHOLE[dotted] if name in target}
        target[key] = parsed
        for pair in _EITHER:
            if dotted in pair:
                other = pair[1 - pair.index(dotted)]
                if other not in overrides:
                    other_section, _, other_key = other.partition(".")
                    section_values = merged.get(other_section)
                    if isinstance(section_values, dict):
                        section_values.pop(other_key, None)
    return merged


def flags() -> list[Leaf]:
    """Every dotted key that the command line may set."""
    model = [leaf for leaf in leaves(TrainConfig) if leaf.name.startswith("model.") and leaf.name != "model.fields"]
    hints = get_type_hints(GLMConfig)
    model += [
        Leaf(f"model.{name}", readable(hint), getattr(GLMConfig, name, MISSING), "field of GLMConfig")
        for name, hint in hints.items()
        if name != "special"
    ]
    presets = ", ".join(PRESETS)
    objective = Leaf("objective.preset", "text or null", None, f"a published mixture to start from: {presets}")
    others = [leaf for leaf in leaves(TrainConfig) if not leaf.name.startswith("model.")]
    others.sort(key=lambda leaf: not leaf.name.startswith(("data.", "objective.")))  # the task's own come first
    return [*model, objective, *others]


def _parse(dotted: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    kind = {leaf.name: leaf.kind for leaf in flags()}.get(dotted, "")
    lists = "list of" in kind and value.startswith("[")
    if kind == "text" or (kind.startswith("text or ") and value not in ("null", "") and not lists):
        return value
    return parse_yaml(value, f"--{dotted} {shorten(repr(value))}", ConfigError)


def replaced_by_presets(overrides: Mapping[str, object]) -> list[str]:
    """A sentence for each preset that takes the place of overrides before it."""
    names, sentences = list(overrides), []
    for number, dotted in enumerate(names):
        section = dotted.partition(".")[0] + "."
        kept = [section + name for name in _WHOLE.get(dotted, ())]
        lost = [name for name in names[:number] if name.startswith(section) and name not in kept]
        if dotted in _WHOLE and lost:
            options = ", ".join(f"--{name}" for name in lost)
            sentences.append(f"--{dotted} stands behind {options} and takes its place; give presets first")
    return sentences

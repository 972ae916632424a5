"""Recipes: found by path or name, read, and overlaid with `--section.key value` and the well-known short names.

`Recipes` is one kind of them; `pretraining_recipes.py` and `finetuning_recipes.py` hold the tables of the two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from glmkit.errors import ConfigError, closest, shorten
from glmkit.small_files import parse_yaml, read_small

from .run_config import RunConfig
from .schema import Leaf

C = TypeVar("C", bound=RunConfig, covariant=True)

# Names people know from the original scripts and from other trainers -> ours, in the sections that every run has.
ALIASES = {
    "per_device_train_batch_size": "training.micro_batch_size",
    "micro_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "batch_size": "training.batch_size",
    "global_batch_size": "training.batch_size",
    "max_steps": "training.max_steps",
    "num_train_epochs": "training.num_epochs",
    "epochs": "training.num_epochs",
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
    "save_interval": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "eval_steps": "evaluation.every",
    "eval_interval": "evaluation.every",
    "dataloader_num_workers": "data.workers",
    "recompute": "training.recompute",
    "output_dir": "output.directory",
}
SWITCHES = {
    "bf16": ("training.precision", "bf16"),
    "fp16": ("training.precision", "fp16"),
    "gradient_checkpointing": ("training.recompute", "true"),
}
# Options of other trainers that have no key here -> what takes their place.
FOREIGN = {
    "do_train": "leave it out: this verb trains",
    "do_eval": "leave it out: --evaluation.every N sets the rhythm",
    "eval_strategy": "--evaluation.every N sets the rhythm, 0 = never",
    "evaluation_strategy": "--evaluation.every N sets the rhythm, 0 = never",
    "save_strategy": "--checkpoint.every N sets the rhythm",
    "overwrite_output_dir": "a run is never overwritten: --resume auto continues it, another --output starts anew",
    "resume_from_checkpoint": "--resume auto, or --resume DIR",
    "save": "--output DIR",
    "optim": "--optimizer.name adamw or muon",
    "streaming": "leave it out: the data is mapped and never read as a whole",
    "deepspeed": "leave it out: --nproc N, or torchrun, starts several processes",
    "zero_stage": "leave it out: --nproc N, or torchrun, starts several processes",
    "local_rank": "leave it out: --nproc N, or torchrun, starts several processes",
}
# Two ways to say one thing: saying one on the command line replaces the recipe's other.
EITHER = (
    ("training.max_steps", "training.max_samples"),
    ("training.max_steps", "training.num_epochs"),
    ("training.max_samples", "training.num_epochs"),
    ("training.batch_size", "training.gradient_accumulation_steps"),
    ("schedule.lr_decay_iters", "schedule.lr_decay_samples"),
    ("schedule.warmup_ratio", "schedule.warmup_samples"),
    ("schedule.warmup_ratio", "schedule.warmup_steps"),
    ("schedule.warmup_steps", "schedule.warmup_samples"),
    ("evaluation.rows", "evaluation.batches"),
)


class Whole(NamedTuple):
    """The effect of a key that stands for a whole section: what was set there before it goes, but for `kept`.

    by_change: only where the key says something else than the recipe.
    """

    section: str
    kept: tuple[str, ...] = ()
    by_change: bool = False


@dataclass(frozen=True)
class Recipes(Generic[C]):
    """One kind of recipes: their folder, what they may say, and the names that people know for it.

    leaves: every dotted key that the command line may set. exclusive: pairs of keys of which one may be given -> the
    words that refuse both. See the tables above for the others.
    """

    folder: str
    config: type[C]
    leaves: Callable[[], Sequence[Leaf]]
    aliases: Mapping[str, str]
    switches: Mapping[str, tuple[str, str]]
    foreign: Mapping[str, str]
    either: Sequence[tuple[str, str]] = EITHER
    whole: Mapping[str, Whole] = field(default_factory=dict)
    exclusive: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """The recipes that come with glmkit, by name."""
        return {path.stem: path for path in sorted(recipe_folder().glob(f"{self.folder}/*.yaml"))}

    def find(self, source: str | Path) -> Path:
        """The file that `source` names, a path or one of `files`. Raises ConfigError."""
        path, known = Path(source), self.files()
        if path.is_file():
            return path
        if str(source) in known:
            return known[str(source)]
        others = [other.parent.name for other in recipe_folder().glob(f"*/{path.name}.yaml")]
        if others and path.name == str(source):
            step = f"it is a recipe of {others[0]}; known here are {', '.join(known)}"
        else:
            near = closest(path.stem, known)
            step = f"{f'did you mean {near!r}? ' if near else ''}known are {', '.join(known)}"
        raise ConfigError(f"{source} is neither a file nor the name of a recipe", step=step)

    def read(self, source: str | Path, overrides: Mapping[str, object] | None = None) -> C:
        """The config of a YAML file (or of a recipe by name) with `overrides` (dotted key -> text or value) over it.

        Raises ConfigError for an unknown recipe, YAML that does not parse, unknown keys and wrong values; OSError for
        an unreadable file.
        """
        path = self.find(source)
        values = parse_yaml(read_small(path, ConfigError), str(path), ConfigError)
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no recipe; expected sections such as `model:` and `training:`")
        try:
            return self.config.from_dict(self.merge(values, overrides or {}))
        except ConfigError as error:
            blamed = " with the options given" if overrides and self._is_sound(values) else ""
            raise error.behind(f"{path}{blamed}: ") from error

    def _is_sound(self, values: Mapping[str, object]) -> bool:
        """True for a recipe in which nothing is wrong by itself."""
        try:
            self.config.from_dict(self.merge(values, {}))
        except ConfigError:
            return False
        return True

    def merge(self, values: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
        """`values` (sections) with dotted `overrides` over them, in order; text is read as YAML: `null`, `[a, b]`.

        The one rule of precedence: an override wins over the recipe, and one that stands for a whole section (a preset)
        takes the place of what that section had before it. Inside a section as it comes out, single keys change it.
        """
        for (one, other), words in self.exclusive.items():
            if overrides.get(one) is not None and overrides.get(other) is not None:
                raise ConfigError(words)
        merged: dict[str, object] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        kinds = {leaf.name: leaf.kind for leaf in self.leaves()}
        for dotted, value in overrides.items():
            parsed = _parse(dotted, value, kinds.get(dotted, ""))
            whole = self.whole.get(dotted)
            if whole is not None and parsed is not None and not (whole.by_change and _at(merged, dotted) == parsed):
                before = _section(merged, whole.section)
                merged[whole.section] = {name: before[name] for name in whole.kept if name in before}
            *path, key = dotted.split(".")
            target = _section(merged, path[0])
            for name in path[1:]:
                inner = target.get(name)
                target[name] = target = dict(inner) if isinstance(inner, Mapping) else {}
            target[key] = parsed
            for pair in self.either:
                if dotted in pair:
                    other = pair[1 - pair.index(dotted)]
                    if other not in overrides:
                        other_section, _, other_key = other.partition(".")
                        section_values = merged.get(other_section)
                        if isinstance(section_values, dict):
                            section_values.pop(other_key, None)
        return merged

    def replaced(self, overrides: Mapping[str, object]) -> list[str]:
        """A sentence for each override that takes the place of overrides before it."""
        names, sentences = list(overrides), []
        for number, dotted in enumerate(names):
            if (whole := self.whole.get(dotted)) is None:
                continue
            kept = [dotted, *(f"{whole.section}.{name}" for name in whole.kept)]
            lost = [n for n in names[:number] if n.startswith(f"{whole.section}.") and n not in kept]
            if lost:
                options = ", ".join(f"--{name}" for name in lost)
                sentences.append(f"--{dotted} stands behind {options} and takes its place; give it first")
        return sentences


def recipe_folder() -> Path:
    """The folder of all recipes: beside the modules once installed, at the top of a source tree."""
    packaged = Path(__file__).resolve().parents[1] / "recipes"
    return packaged if packaged.is_dir() else packaged.parents[2] / "recipes"


def recipe_files() -> dict[str, Path]:
    """Every recipe that comes with glmkit, as KIND/NAME."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(recipe_folder().glob("*/*.yaml"))}


def _section(merged: dict[str, object], name: str) -> dict[str, object]:
    """The section as it is so far, made where there is none."""
    section = merged.get(name)
    if section is None:
        section = merged[name] = {}
    if not isinstance(section, dict):
        raise ConfigError(f"{name} is {section!r}; it must be a section of `key: value` lines")
    return section


def _at(merged: Mapping[str, object], dotted: str) -> object:
    section, _, key = dotted.partition(".")
    values = merged.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _parse(dotted: str, value: object, kind: str) -> object:
    if not isinstance(value, str):
        return value
    lists = "list of" in kind and value.startswith("[")
    if kind == "text" or (kind.startswith(("text or ", "list of text")) and value not in ("null", "") and not lists):
        return value
    return parse_yaml(value, f"--{dotted} {shorten(repr(value))}", ConfigError)

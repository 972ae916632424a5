"""The description of a family, and the search for families: one file each, no registry to edit."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from glmkit import families
from glmkit.config import GLMConfig
from glmkit.errors import ConfigError, RequestError, did_you_mean
from glmkit.small_files import parse_small_json, read_small
from glmkit.tokenizer.chat_template import ChatTemplate
from glmkit.tokenizer.dialogue import TuningFormat
from glmkit.tokenizer.protocol import Tokenizer

from .common.evidence import Evidence, Sign, signs_of_names
from .common.layout import Layout

CONFIG_FILES = ("config.json", "model_config.json")  # published beside the weights


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything that is particular to one family; declarative, importable without torch.

    layouts: how it was published. repositories, stems: names of its releases besides those of the presets, and what
    people write in names of their own (see `signs_of_names`). signs: what else the config and the small files beside it
    say for or against this family, where several share a layout. tokenizer: reads published tokenizer files, None when
    they are absent (tokenizer_files says what is looked for). chat: how messages become one prompt, None for models
    that were never taught to.
    """

    name: str
    title: str
    presets: Mapping[str, GLMConfig] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    repositories: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    signs: Callable[[Evidence], Iterable[Sign]] = lambda evidence: ()
    tokenizer: Callable[[Path, GLMConfig | None], Tokenizer | None] = lambda directory, config: None
    tokenizer_files: tuple[str, ...] = ()
    chat: ChatTemplate | None = None
    tuning: TuningFormat | None = None

    def evidence(self, evidence: Evidence) -> tuple[Sign, ...]:
        """Signs for and against this family, the strongest first."""
        names = signs_of_names(evidence, self.name, (*self.presets, *self.repositories), self.stems)
        return tuple(sorted((*names, *self.signs(evidence)), key=lambda sign: -sign.weight))


def config_beside(directory: Path) -> tuple[str, Mapping[str, object]]:
    """Name and content of the first config file that is a JSON object; ("", {}) without one."""
    for name in CONFIG_FILES:
        path = directory / name
        try:
            values = parse_small_json(read_small(path, ConfigError), str(path), ConfigError)
        except (FileNotFoundError, ConfigError):
            continue
        if isinstance(values, dict):
            return name, values
    return "", {}


def first_config(layouts: Iterable[Layout], values: Mapping[str, object]) -> GLMConfig | None:
    """The config as the first of these layouts reads it that can, None when none can."""
    for layout in layouts:
        try:
            return layout.read_config(values).config
        except ConfigError:
            continue
    return None


@cache
def all_families() -> dict[str, Family]:
    """Families by name, from the modules of this package that define FAMILY or FAMILIES.

    Duplicate names are our own mistake.
    """
    found: dict[str, Family] = {}
    for info in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{info.name}")
        one = getattr(module, "FAMILY", None)
        for family in getattr(module, "FAMILIES", ()) if one is None else (one,):
            assert family.name not in found, f"two families are called {family.name}"
            found[family.name] = family
    return found


def family_named(name: str) -> Family:
    """The family of that name. Raises ConfigError listing the closest names."""
    known = all_families()
    if name not in known:
        raise ConfigError(f"no family is called {name!r}", step=did_you_mean(name, sorted(known)))
    return known[name]


def taught_tools() -> list[str]:
    """Models that were taught to call tools, by the names of their chat templates."""
    chats = (family.chat for family in all_families().values())
    return sorted({chat.name for chat in chats if chat is not None and "observation" in chat.roles})


def require_tools(template: ChatTemplate, param: str) -> None:
    """Raise RequestError, naming the models that can, for one that was not taught to use tools."""
    if "observation" not in template.roles:
        taught = ", ".join(taught_tools())
        raise RequestError(
            f"{template.name} was not taught to use tools; leave them out, or take one of {taught}", param=param
        )


def preset(name: str) -> GLMConfig:
    """The config of a published size. Raises ConfigError listing the closest names."""
    presets = {key: config for family in all_families().values() for key, config in family.presets.items()}
    if name not in presets:
        raise ConfigError(f"no preset is called {name!r}", step=did_you_mean(name, sorted(presets)))
    return presets[name]


def preset_names() -> list[str]:
    """Names of all presets, in the order of their families' files."""
    return [name for family in all_families().values() for name in family.presets]


def first_command(family: str, arguments: str, *, causal: bool) -> str:
    """The verb to try a model of that family with: a conversation if it was taught one, else a blank, else a text.

    arguments: the model and its options, as the shell takes them.
    """
    verb = first_verb(family, causal=causal)
    text = {"chat": "", "generate": ' "…"', "fill": ' "… [MASK] …"'}[verb]
    return f"glm {verb} {arguments}{text}"


def first_verb(family: str, *, causal: bool) -> str:
    """The verb that a model of that family answers to best: chat, generate or fill."""
    known = all_families().get(family)
    if known is not None and known.chat is not None:
        return "chat"
    return "generate" if causal else "fill"

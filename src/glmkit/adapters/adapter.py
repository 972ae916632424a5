"""The interface of every kind of adapter, and finding the kinds: one sub-package each, no registry to edit."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from glmkit import adapters
from glmkit.checkpoint.files.paddle_file import write_paddle
from glmkit.checkpoint.files.stream import Entry
from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.taught import Taught
from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.model import GLM
from glmkit.tokenizer.protocol import Tokenizer

from .adapter_files import PADDLE, AdapterFiles


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about one adapter.

    path: where it was read from, None for a new one. size: prefix length, or the largest LoRA rank. modules: layers of
    the prefix, or linear layers of ours with an update. dtype: what the file holds (the adapter computes in float32 or
    wider). naming: whose module names the file uses. notes: what was decided, replaced or ignored, one line each.
    """

    kind: str
    path: Path | None
    size: int
    modules: int
    dtype: torch.dtype
    naming: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """The model under an adapter. family, layout: whose names for its modules are tried, see `naming.namings`.

    tokenizer: of the model, where an adapter may add tokens.
    """

    model: GLM
    family: Family | None = None
    layout: Layout | None = None
    tokenizer: Tokenizer | None = None

    @property
    def config(self) -> GLMConfig:
        """The config of the model."""
        return self.model.config

    @property
    def float_tensor(self) -> Tensor:
        """A tensor that is float in every model, quantised or not: its dtype and device are the base's."""
        return self.model.model.norm_weight


@dataclass(frozen=True)
class Origin:
    """Source of an adapter: its base by name and as a directory, and what was taught with it.

    base_name: as somebody gave it, a directory or a name on a hub. base_path: the directory, absolute.
    """

    base_name: str | None = None
    base_path: str | None = None
    taught: Taught = Taught()  # noqa: RUF009


@dataclass(frozen=True)
class Saving:
    """The options of `directory.save_adapter`, for one adapter. Remarks go to `notes`."""

    folder: Path
    layout: Layout | None = None
    dtype: torch.dtype | None = None
    base_name: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def for_paddle(self) -> bool:
        """True when PaddleNLP's files are asked for."""
        return self.layout is not None and self.layout.container == PADDLE

    def converted(self, tensors: Mapping[str, Tensor], stored: torch.dtype) -> dict[str, Tensor]:
        """The tensors on the CPU in `dtype`; without one in `stored` when no value changes by it, else in float32."""
        chosen = self.dtype
        if chosen is None:
            same = all(torch.equal(value.to(stored).to(value.dtype), value) for value in tensors.values())
            chosen = stored if same else torch.float32
            if not same:
                self.notes.append(f"written in float32: the values no longer fit the {str(stored)[6:]} that was read")
        return {name: value.to("cpu", chosen, copy=True).contiguous() for name, value in tensors.items()}

    def write_paddle(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file of Paddle parameters."""
        entries = [
            Entry(key, TensorInfo(tensor.dtype, tuple(tensor.shape)), partial(list, (tensor,)))
            for key, tensor in tensors.items()
        ]
        write_paddle(self.folder / name, entries)


class Adapter(ABC):
    """One adapter, ready to be put on its base; each kind is a subclass, the `ADAPTER` of its sub-package.

    The class methods read directories of the kind, the others act on one adapter. `attach` and `directory` hold what
    is the same for every kind; nothing else needs to know which kinds there are.

    kind: the name in records and messages. options: what a new adapter of the kind is made from. weight_files,
    setting_files: names of files that only this kind has. mark: what stands in the stored names of all its tensors
    where they may lie in a file that is named like a model's, "" when they never do. facts: settings worth showing ->
    what to call them. takes_alpha: whether `glmkit.load(alpha=...)` means anything.
    """

    kind: ClassVar[str]
    options: ClassVar["type[NewAdapter]"]
    weight_files: ClassVar[tuple[str, ...]] = ()
    setting_files: ClassVar[tuple[str, ...]] = ()
    mark: ClassVar[str] = ""
    facts: ClassVar[Mapping[str, str]] = {}
    takes_alpha: ClassVar[bool] = False

    def __init__(self, info: AdapterInfo) -> None:
        self.info = info
        self.trained = False  # its parameters get gradients; decided before it is put on
        self.origin = Origin()
        self.new_tokens: Mapping[str, int] = {}
        self.tokenizer: Tokenizer | None = None  # the one that has them
        self.base: Mapping[str, object] = {}  # facts of the base, since the adapter is on it (`base_facts`)
        self.frozen: list[nn.Parameter] = []  # of the base, while the adapter alone is trained

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def claims(cls, directory: Path) -> int:
        """Rate how sure the files of a directory make this kind; the highest wins, 0 is none.

        1: a file that may hold one. 2: files named as this kind's usually are. 3: the files say so.
        """

    @classmethod
    @abstractmethod
    def open(cls, directory: Path, *, beside_weights: bool) -> AdapterFiles:
        """Read the files of a directory that the kind claims; see `directory.open_adapter`."""

    @classmethod
    @abstractmethod
    def inspect(cls, files: AdapterFiles) -> list[str]:
        """Notes on files without their base. Raises CheckpointError for what is wrong whatever the base."""

    @classmethod
    def no_effect(cls, files: AdapterFiles) -> str:
        """The reason why an adapter changes nothing, "" for one that does."""
        return ""

    @classmethod
    @abstractmethod
    def read(cls, files: AdapterFiles, base: Base, alpha: float | None) -> Self:
        """An adapter for the base, which is left alone. Raises CheckpointError, ConfigError or RequestError."""

    @abstractmethod
    def save(self, base: Base, saving: Saving) -> tuple[str, dict[str, object]]:
        """Write files that `open` reads: (whose module names they use, what the record must hold besides)."""

    @property
    def stated(self) -> Mapping[str, object]:
        """Settings that somebody may state beside the files, and what the adapter has."""
        return {}

    def require(self, stated: Mapping[str, object]) -> None:
        """Raise RequestError for a setting that somebody states otherwise, with both values; None states nothing."""
        for name, value in stated.items():
            if value is None:
                continue
            if name not in self.stated:
                what = f"{name}={value!r} has no effect on the {self.kind} in {self.info.path}"
                raise RequestError(what, step="leave it out", param=name)
            if self.stated[name] != value:
                what = f"{name} is {value!r}, but the adapter in {self.info.path} has {self.stated[name]!r}"
                raise RequestError(what, step="leave it out: the files say it", param=name, code="contradiction")

    # --- on the model -------------------------------------------------------------------------------------------------

    @abstractmethod
    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's own parameters, each once: the only ones that training it changes."""

    @abstractmethod
    def put_on(self, model: GLM) -> None:
        """Change the model so that it computes with the adapter. Nothing can fail here."""

    @abstractmethod
    def take_off(self, model: GLM) -> None:
        """Undo `put_on`: the model is what it was before, bit for bit, and the adapter can be put on again."""

    def merge(self, model: GLM) -> None:
        """Move what the adapter does into the model's weights, and the adapter off.

        Raises RequestError where that cannot be done; then nothing has changed.
        """
        raise RequestError(f"an adapter of the kind {self.kind} cannot be merged", step="keep it as an adapter")


def option(default: Any, help: str) -> Any:
    """A field of a kind's options with its one-line help text."""
    metadata = {"help": help}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class NewAdapter(Protocol):
    """Options of a kind, a dataclass of plain values, from which an untrained adapter is made."""

    def build(self, base: Base) -> Adapter:
        """An untrained adapter for the base, which is left alone. Raises ConfigError for options that do not fit."""


@cache
def all_kinds() -> dict[str, type[Adapter]]:
    """Kinds by name, from the sub-packages of this package that define ADAPTER. Duplicate names are our own mistake."""
    found: dict[str, type[Adapter]] = {}
    for info in pkgutil.iter_modules(adapters.__path__):
        if info.ispkg:
            kind: type[Adapter] = importlib.import_module(f"{adapters.__name__}.{info.name}").ADAPTER
            assert kind.kind not in found, f"two kinds of adapters are called {kind.kind}"
            found[kind.kind] = kind
    return found

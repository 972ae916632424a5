"""Reporters beside the files of a run: TensorBoard's events, Weights & Biases. None of them may end a training.

Only packages are looked for before the start; what fails later is said once, and training goes on without it.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from glmkit.errors import ConfigError, did_you_mean, message_text

NONE = "none"


class Reporter(Protocol):
    """A place that shows numbers and texts by step."""

    def numbers(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, name: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory; those after `step` are hidden when a run goes on."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        self._board.add_text(name, text, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """A run of Weights & Biases named like the directory; its own settings (WANDB_MODE, WANDB_PROJECT) count."""

    def __init__(self, directory: Path, step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(dir=str(directory), name=directory.name, id=directory.name, resume="allow")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: text}, step=step)

    def close(self) -> None:
        self._run.finish()


# Name -> (package, class).
_KNOWN: dict[str, tuple[str, Callable[[Path, int], Reporter]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
}


def check_reporters(names: Sequence[str], *, param: str = "output.report_to") -> list[str]:
    """The reporters that are meant, each once. Raises ConfigError for unknown names and absent packages."""
    chosen = [name for name in dict.fromkeys(names) if name != NONE]
    for name in chosen:
        if name not in _KNOWN:
            hint = did_you_mean(name, [*_KNOWN, NONE])
            raise ConfigError(f"{param} names {name!r}; {hint}", param=param)
        package = _KNOWN[name][0]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{param} {name} needs the package {package}",
                step=f"pip install {package}, or leave it out: metrics.jsonl is always written",
                param=param,
            )
    return chosen


class Reporters:
    """Several reporters as one. warn: told once about each that fails, which is left out from then on."""

    def __init__(self, names: Sequence[str], directory: Path, step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._open: dict[str, Reporter] = {}
        for name in check_reporters(names):
            try:
                self._open[name] = _KNOWN[name][1](directory, step)
            except Exception as error:  # a stranger's library: whatever it raises, training goes on
                self._left(name, error)

    def numbers(self, kind: str, values: Mapping[str, object]) -> None:
        """Report the numbers of one line of metrics."""
        step = values["step"]
        assert isinstance(step, int)
        found = {f"{kind}/{name}": value for name, value in _numbers(values) if name != "step"}
        self._each(lambda reporter: reporter.numbers(found, step))

    def text(self, name: str, text: str, step: int) -> None:
        self._each(lambda reporter: reporter.text(name, text, step))

    def close(self) -> None:
        self._each(lambda reporter: reporter.close())

    def _each(self, action: Callable[[Reporter], None]) -> None:
        for name, reporter in list(self._open.items()):
            try:
                action(reporter)
            except Exception as error:
                del self._open[name]
                self._left(name, error)

    def _left(self, name: str, error: Exception) -> None:
        self._warn(message_text(f"{name} cannot be reached ({error}); training goes on without it"))


def _numbers(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value

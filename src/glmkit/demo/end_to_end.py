"""The demo from end to end: the standard library's source -> tokenizer -> a small GLM -> filled blanks and a report."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from glmkit.data.store import write_store
from glmkit.demo.corpus import collect, split
from glmkit.demo.exam import Exam
from glmkit.demo.examples import Example, examples, print_examples, rates_table
from glmkit.demo.measure import Measured, measure
from glmkit.demo.page import page
from glmkit.demo.timed_training import SEQUENCE, VOCABULARY, train
from glmkit.errors import RequestError
from glmkit.eval.report_files import finite, machine_facts, write_report
from glmkit.session import load
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.checkpoints import CheckpointStore, write_final_model

Points = Sequence[tuple[float, float]]  # (tokens seen, loss in nats per target)
Facts = Mapping[str, str | int | float]  # label -> value, in the order to be shown


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything both files are made of. Times in seconds; losses in nats per target token.

    `seconds` is the demo's own run, set-up left out; `phases` says where it went. `tokens_per_second` counts the
    non-padding input tokens of training. `model`, `training` and `machine` are facts by label: keep private paths out.
    """

    seconds: float
    phases: Mapping[str, float]
    tokens_per_second: float
    tokens_seen: int
    parameters: int
    validation_loss: float
    measured: Measured
    corpus: Facts
    model: Facts
    training: Facts
    machine: Facts
    training_losses: Points
    validation_losses: Points
    blanks_left_out: Mapping[str, Mapping[str, int]]  # kind -> reason -> places
    examples: Sequence[Example]

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json: numbers that are not finite become null."""
        own = {name: value for name, value in vars(self).items() if name != "measured"}
        found = finite(own | self.measured.to_dict())
        assert isinstance(found, dict)
        return found

    def write(self, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write report.json and report.html into a directory that exists; their paths."""
        values = self.to_dict()
        return write_report(directory, values, page(values))


_SHORTEST_MINUTES = 0.2
_RESERVE = 0.14  # share of the run kept for filling blanks and the report


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """minutes: of the whole run on this machine. blanks: single-token blanks; a fifth as many of the other kinds."""

    output: Path
    minutes: float = 5.0
    blanks: int = 5000
    seed: int = 0
    library: Path | None = None  # other Python sources than the running interpreter's

    def __post_init__(self) -> None:
        if not self.minutes >= _SHORTEST_MINUTES:
            raise RequestError(f"minutes is {self.minutes}; give at least {_SHORTEST_MINUTES}")
        if self.blanks < 2:
            raise RequestError(f"blanks is {self.blanks}; give at least 2")
        if self.seed < 0:
            raise RequestError(f"seed is {self.seed}; give at least 0")


@dataclass
class _Clock:
    """Seconds since the start, and where they went."""

    started: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def phase(self, name: str, console: Console) -> Iterator[None]:
        start = self.elapsed()
        console.print(f"[bold]{name}[/bold]")
        yield
        self.phases[name] = self.elapsed() - start


def run_demo(options: DemoOptions, console: Console) -> Report:
    """Run it all; `output` then holds model/ (works with every verb), data/, run/, report.html and report.json.

    Progress goes to `console`. Raises GLMKitError subclasses and OSError.
    """
    clock = _Clock()
    options.output.mkdir(parents=True, exist_ok=True)
    with clock.phase("reading the standard library", console):
        found = collect(options.library)
        parts = split(found.modules)
    with clock.phase("training a tokenizer", console):
        tokenizer = train_tokenizer((module.text for module in parts.train), vocab_size=VOCABULARY)
        store = options.output / "data"
        splits = {"train": parts.train, "validation": parts.validation}
        texts = {name: [module.text for module in modules] for name, modules in splits.items()}
        write_store(store, tokenizer, texts, facts={"source": "the Python standard library"}, replace=True)
    with clock.phase("pretraining", console):
        seconds = options.minutes * 60 * (1 - _RESERVE) - clock.elapsed()
        shutil.rmtree(options.output / "run", ignore_errors=True)
        course = train(store, options.output / "run", seconds, seed=options.seed, stream=console.file)
    with clock.phase("filling held-out blanks", console):
        lm = load(_model_directory(options.output))
        exam = Exam(tokenizer, parts, count=options.blanks, window=SEQUENCE - 1, seed=options.seed)
        measured = measure(exam.blanks, exam.filler(lm), exam.counts(store), seed=options.seed)
    shown = examples(exam.blanks, measured, exam.texts, exam.spelled)
    parameters = sum(p.numel() for p in lm.model.parameters())
    report = Report(
        seconds=clock.elapsed(),
        phases=clock.phases,
        tokens_per_second=course.tokens / course.seconds,
        tokens_seen=course.tokens,
        parameters=parameters,
        validation_loss=course.validation[-1][1],
        measured=measured,
        corpus=parts.facts(unreadable=len(found.unreadable)),
        model={
            "parameters": parameters,
            "layers": lm.config.num_layers,
            "width": lm.config.hidden_size,
            "heads": lm.config.num_heads,
            "positions": lm.config.positions,
            "vocabulary": lm.tokenizer.vocab_size,
        },
        training=course.facts(),
        machine=machine_facts(),
        training_losses=course.training,
        validation_losses=course.validation,
        examples=shown,
        blanks_left_out=dict(exam.left_out),
    )
    report.write(options.output)
    print_examples(shown, console)
    console.print(rates_table(measured))
    return report


def _model_directory(output: Path) -> Path:
    """The newest checkpoint's model, moved to where people look for it."""
    newest = CheckpointStore(output / "run").latest()
    assert newest is not None, "training ends with a checkpoint"
    made = write_final_model(output / "run", newest)
    target = output / "model"
    shutil.rmtree(target, ignore_errors=True)
    return made.rename(target)

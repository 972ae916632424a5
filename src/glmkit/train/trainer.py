"""The loop: micro-batches -> gradients -> update, with evaluation, checkpoints, exact resume and clean stops.

It knows nothing of blanks, recipes or parallel plans: it gets a ready model, batches, a loss and an optimizer.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor, nn

from glmkit.checkpoint.run_directory import read_state
from glmkit.devices import is_cpu, peak_memory
from glmkit.errors import ConfigError, TrainingError
from glmkit.parallel.apply import without_sync
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.threads import LayerWork, one_thread

from . import random_state as rng
from .best import PATIENCE
from .checkpoints import CheckpointStore, read_optimizer
from .interfaces import B, BatchSource, Evaluator, LossFn, Previewer, StepBatch, Sums, TrainerOptions, TrainResult
from .metrics import MetricsLog
from .optim import Optimizers, clip_gradients
from .schedule import StepPlan
from .state import Entry, StepRecord, TrainState, check_targets, explain_nonfinite
from .stop import StopRequest, shielded_children


class Objective(nn.Module, Generic[B]):
    """Model and loss as one forward pass, so that gradient synchronisation wraps both (`parallel.apply`)."""

    def __init__(self, model: nn.Module, loss_fn: LossFn[B]) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: B) -> Sums:
        return self.loss_fn(self.model, batch)


class Trainer(Generic[B]):
    """One training run. Build it with everything ready, `resume` it if there is a checkpoint, then `run`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: nn.Module,
        batches: BatchSource[B],
        plan: StepPlan,
        optimizers: Optimizers,
        learning_rate: Callable[[TrainState, int], float],
        options: TrainerOptions,
        ranks: Ranks | None = None,
        store: CheckpointStore | None = None,
        write_model: Callable[[Path], None] | None = None,
        read_model: Callable[[Path], None] | None = None,
        record: Mapping[str, object] | None = None,
        log: MetricsLog | None = None,
        progress: Progress | None = None,
        evaluators: Mapping[str, Evaluator] | None = None,
        previewer: Previewer | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
        on_checkpoint: Callable[[Path], None] | None = None,
    ) -> None:
        """`objective(batch)` gives `Sums`: an `Objective` of `model`, wrapped as the parallel plan says.

        `learning_rate(state, rows)` gives the rate of the step that takes `rows` more rows from `state`.

        `write_model` fills a checkpoint directory with the model's files, `read_model` loads them back; `record` is
        stored beside the state. `store`, `log`, `progress`, `on_step` and `on_checkpoint` are used by rank 0 alone,
        previews too; evaluators run on every rank and must return the same numbers there.
        Raises ConfigError for fp16 on a CPU.
        """
        self.model, self.objective, self.batches, self.plan = model, objective, batches, plan
        self.optimizers, self.learning_rate, self.options = optimizers, learning_rate, options
        self.ranks = ranks or Ranks()
        self.device = self.ranks.device
        self.store, self.write_model, self.read_model = store, write_model, read_model
        self.record, self.log = dict(record or {}), log
        self.progress = progress or Progress(quiet=True, silent=not self.ranks.is_main)
        self.evaluators, self.previewer = dict(evaluators or {}), previewer
        self.on_step, self.on_checkpoint = on_step, on_checkpoint
        self.state = TrainState()
        self.stop = StopRequest()
        self._work = LayerWork.of(model)
        if options.precision == "fp16" and is_cpu(self.device):
            raise ConfigError("precision fp16 needs CUDA (on a CPU fp16 is for storage only); use bf16 or fp32")
        self.scaler = torch.amp.GradScaler(self.device.type) if options.precision == "fp16" else None

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train until `total_steps`, or until a signal or `stop.ask`; then there is a checkpoint of the last step.

        Raises TrainingError on a loss or gradient that is not finite (the weights are those before that step; nothing
        is saved) and on a micro-batch without targets.
        """
        options, state = self.options, self.state
        reason = "finished"
        self.model.train()
        with ExitStack() as stack:
            iterator = self._start_data(stack)
            self.progress.start("step", options.total_steps, state.step)
            stack.callback(self.progress.stop)
            with self.stop:
                if state.step and self._due(options.evaluate_every) and state.evaluated != state.step:
                    self._evaluate()  # stopped between the step and its evaluation
                if state.step < options.total_steps:
                    self._require_room()
                    reason = PATIENCE if options.best.exhausted(state) else reason
                while state.step < options.total_steps and reason != PATIENCE:
                    record, stop_reason = self._step(iterator)
                    self._report(record)
                    better = False
                    if self._due(options.evaluate_every) and stop_reason is None:
                        better = self._evaluate()
                        stop_reason = PATIENCE if options.best.exhausted(state) else self._stop_reason()
                    done = state.step == options.total_steps
                    if self._due(options.checkpoint_every) or done or better or stop_reason is not None:
                        self._save()
                    if stop_reason is not None:
                        reason = stop_reason
                        break
        return TrainResult(state.step, reason, list(state.recent_losses), state.dropped)

    def resume(self, checkpoint: Path) -> dict[str, object]:
        """Put weights, optimizer, random states and data position back; what `record` was when it was written.

        Raises CheckpointError for a damaged checkpoint or one of another model or optimizer.
        """
        document = read_state(checkpoint)
        if self.read_model is not None:
            self.read_model(checkpoint)
        self.optimizers.load_state_tensors(read_optimizer(checkpoint))
        self.state = TrainState.from_dict(document["state"])
        if self.store is not None:
            self.store.best = self.state.best_step or None
        if self.scaler is not None and document["scaler"] is not None:
            self.scaler.load_state_dict(document["scaler"])
        states = document["random"]
        if len(states) == self.ranks.world_size:
            rng.restore(states[self.ranks.rank], self.device)
        else:
            self.progress.warn(
                f"resuming {len(states)} rank(s) on {self.ranks.world_size}: the data order is the same, dropout is not"
            )
        return dict(document["record"])

    def _start_data(self, stack: ExitStack) -> Iterator[B]:
        """The iterator of the source, its first batch already there; a source that is a context manager is entered.

        Starting a DataLoader draws a number from PyTorch's generator; neither run, resumed or not, may notice.
        """
        with rng.untouched(self.device), shielded_children():
            source = iter(self.batches(self.state))
            if isinstance(source, AbstractContextManager):
                stack.enter_context(source)
            first = [] if self.state.step >= self.options.total_steps else list(islice(source, 1))
        return chain(first, source)

    def _stop_reason(self) -> str | None:
        """The reason to stop that any rank has; all ranks call it together."""
        return next((reason for reason in self.ranks.gather(self.stop.reason) if reason is not None), None)

    # -- one step ------------------------------------------------------------------------------------------------

    def _step(self, iterator: Iterator[B]) -> tuple[StepRecord, str | None]:
        started = time.perf_counter()
        micro_batches = self.plan.micro_batches(self.state.rows)
        own = range(self.ranks.rank, micro_batches, self.ranks.world_size)
        batches = list(islice(iterator, max(1, len(own))))
        data_seconds = time.perf_counter() - started
        with one_thread(self._work.is_small(max((batch.num_tokens for batch in batches), default=0))):
            return self._update(batches, micro_batches, started, data_seconds)

    def _update(
        self, batches: Sequence[B], micro_batches: int, started: float, data_seconds: float
    ) -> tuple[StepRecord, str | None]:
        state, ranks = self.state, self.ranks
        rows = self.plan.rows(state.rows)
        counts = ranks.gather([_entry(batch) for batch in batches if not batch.stands_in])
        everything = sorted(entry for part in counts for entry in part)
        check_targets(everything, micro_batches, step=state.step + 1)
        targets, dropped = sum(entry.targets for entry in everything), sum(entry.dropped for entry in everything)

        rate = self.learning_rate(state, rows)
        self.optimizers.set_rate(rate)
        sums = self._accumulate(batches, targets)
        gathered = ranks.gather((sums, self.stop.reason))
        losses = {index: loss for part, _ in gathered for index, loss in part.items()}
        if self.scaler is not None:
            for part in self.optimizers.parts.values():
                self.scaler.unscale_(part)
        grad_norm = float(clip_gradients(self.optimizers.parameters(), self.options.clip_grad))
        total = math.fsum(losses.values())
        scale = None if self.scaler is None else self.scaler.get_scale()
        overflow = scale is not None and not math.isfinite(grad_norm) and scale > 1
        if not math.isfinite(total) or not (math.isfinite(grad_norm) or overflow):
            newest = None if self.store is None else self.store.latest()
            raise TrainingError(
                explain_nonfinite(
                    everything, losses, grad_norm, rate, state, self.options.precision, self.options.clip_grad, newest
                )
            )
        self.optimizers.step(self.scaler)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizers.zero_grad()

        state.step += 1
        state.micro_batches += micro_batches
        state.rows += rows
        state.tokens += sum(entry.tokens for entry in everything)
        state.targets += targets
        state.dropped += dropped
        state.skipped += overflow
        state.remember(total / targets)
        record = StepRecord(
            step=state.step,
            loss=total / targets,
            losses=_by_mode(everything, losses),
            lr=rate,
            grad_norm=grad_norm,
            tokens=sum(entry.tokens for entry in everything),
            targets=targets,
            dropped=dropped,
            rows=sum(entry.rows for entry in everything),
            loss_scale=scale,
            skipped=overflow,
            seconds=time.perf_counter() - started,
            data_seconds=data_seconds,
            memory=peak_memory(self.device),
        )
        return record, next((reason for _, reason in gathered if reason is not None), None)

    def _accumulate(self, batches: Sequence[B], targets: int) -> dict[int, float]:
        """Backward passes of this rank's micro-batches; each one's reported loss sum by index.

        Every loss is divided by the targets of the whole step over all ranks, so that the sum of the gradients is that
        of one big batch however it is cut. Replicas average their gradients, hence the factor world_size. A batch that
        stands in for none adds zeros.
        """
        factor = self.ranks.world_size / targets
        counted = [batch for batch in batches if not batch.stands_in]
        reported: list[Tensor] = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else without_sync(self.objective):
                with self._autocast():
                    sums: Sums = self.objective(batch.to(self.device))
                loss = sums.loss_sum * (0.0 if batch.stands_in else factor)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            if not batch.stands_in:
                reported.append(sums.cross_entropy_sum.detach().double())
        values = torch.stack(reported).tolist() if reported else []  # the one wait for the device
        return {batch.index: value for batch, value in zip(counted, values, strict=True)}

    def _autocast(self) -> AbstractContextManager[object]:
        if self.options.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    # -- around the steps ----------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return every > 0 and (self.state.step % every == 0 or self.state.step == self.options.total_steps)

    def _report(self, record: StepRecord) -> None:
        if not self.ranks.is_main:
            return
        if self.log is not None:
            self.log.metrics(record.metrics())
            self.log.throughput(record.throughput())
        self.progress.update(record.step, record.words())
        every = self.options.log_every
        if every is not None and record.step % every == 0:
            self.progress.say(f"step {record.step}: {record.words()}")
        if self.on_step is not None:
            self.on_step(record)

    def _evaluate(self) -> bool:
        """Measure; True where the result is the best so far."""
        found: dict[str, object] = {}
        self.model.eval()
        with rng.untouched(self.device), torch.no_grad():
            for name, evaluator in self.evaluators.items():
                with self._autocast():
                    result = dict(evaluator(self.model))
                found |= result
                if self.ranks.is_main:
                    if self.log is not None:
                        self.log.metrics({"kind": name, "step": self.state.step, **result})
                    self.progress.say(f"{name} at step {self.state.step}: {_words(result)}")
            if self.previewer is not None and self.ranks.is_main:
                for preview in self.previewer(self.model):
                    if self.log is not None:
                        self.log.preview({"step": self.state.step, **preview})
                    self.progress.say(f"preview: {preview.get('text', preview)}")
        self.model.train()
        self.state.evaluated = self.state.step
        better = self.options.best.judge(found, self.state)
        if better and self.store is not None:
            self.store.best = self.state.step
        return better

    def _require_room(self) -> None:
        if self.store is not None and self.write_model is not None and self.ranks.is_main:
            self.store.require_room(self.optimizers.checkpoint_bytes())

    def _save(self) -> None:
        if self.store is None or self.write_model is None:
            return
        states = self.ranks.gather(rng.capture(self.device))
        if self.ranks.is_main:
            self._require_room()
            if self.log is not None:
                self.log.sync()
            document = {
                "state": self.state.to_dict(),
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "random": states,
                "record": self.record,
                "metrics": None if self.log is None else self.log.written(),
            }
            optimizer = self.optimizers.state_tensors()
            path = self.store.save(self.state.step, write_model=self.write_model, optimizer=optimizer, state=document)
            if self.on_checkpoint is not None:
                self.on_checkpoint(path)
        self.ranks.barrier()


def _entry(batch: StepBatch) -> Entry:
    return Entry(batch.index, batch.mode, batch.num_tokens, batch.num_targets, batch.num_dropped, batch.num_rows)


def _by_mode(entries: Sequence[Entry], losses: Mapping[int, float]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for entry in entries:
        total = sums.setdefault(entry.mode, [0.0, 0.0])
        total[0] += losses[entry.index]
        total[1] += entry.targets
    return {mode: loss / targets for mode, (loss, targets) in sorted(sums.items())}


def _words(result: Mapping[str, object]) -> str:
    numbers = {name: value for name, value in result.items() if isinstance(value, float)}
    for inner in result.values():
        if isinstance(inner, Mapping):
            numbers |= {name: value for name, value in inner.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())

"""Running jobs in tests: by the engine, or by a reference that knows no cache and no batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from glmkit.config import SpecialIds
from glmkit.generate.engine import Engine, EngineLimits
from glmkit.generate.engine.job import Branch, Job
from glmkit.generate.jobs.answers import make_job
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Answer
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM


class Late:
    """A reader that shows a token when the next one comes."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        shown, self.held = self.held, f"<{token}>"
        return shown

    def flush(self) -> str:
        shown, self.held = self.held, ""
        return shown


class WholePasses:
    """Every branch is one forward pass over its whole row. steps: the branches of every step, job after job."""

    def __init__(self, model: GLM) -> None:
        self.model = model
        self.steps: list[list[Branch]] = []

    @torch.inference_mode()
    def run(self, job: Job) -> None:
        rows: list[tuple[list[int], Tensor, int]] = []
        branches = list(job.start())
        assert branches
        assert all(branch.parent is None for branch in branches)
        while branches:
            self.steps.append(branches)
            assert len(branches) <= job.max_sequences
            rows = [self._grown(branch, rows, job) for branch in branches]
            branches = list(
                job.advance([self._logits(branch, row) for branch, row in zip(branches, rows, strict=True)])
            )

    def _grown(
        self, branch: Branch, rows: list[tuple[list[int], Tensor, int]], job: Job
    ) -> tuple[list[int], Tensor, int]:
        tokens, positions_2T = list(branch.tokens), torch.tensor(branch.positions)
        assert positions_2T.shape == (2, len(tokens))
        assert 1 <= branch.logits <= len(tokens)
        if branch.parent is None:
            assert branch.dropped == 0
            row = (tokens, positions_2T, branch.part_a)
        else:
            before, positions_2L, part_a = rows[branch.parent]
            kept = len(before) - branch.dropped
            assert branch.part_a == 0
            assert part_a <= kept <= len(before)
            row = ([*before[:kept], *tokens], torch.cat([positions_2L[:, :kept], positions_2T], 1), part_a)
        assert len(row[0]) <= job.max_sequence_tokens
        return row

    def _logits(self, branch: Branch, row: tuple[list[int], Tensor, int]) -> Tensor:
        tokens, positions_2L, part_a = row
        prefix = torch.tensor([part_a])
        return self.model(torch.tensor([tokens]), position_ids=positions_2L[None], prefix_length=prefix)[0][
            -branch.logits :
        ]


Runner = GLM | Engine | WholePasses


def _model(runner: Runner) -> GLM:
    return runner if isinstance(runner, GLM) else runner.model


def run_jobs(runner: Runner, jobs: Sequence[Job]) -> None:
    """All at once where the runner can. A model gets an engine of its own."""
    if isinstance(runner, WholePasses):
        for job in jobs:
            runner.run(job)
        return
    rows = max((job.max_sequences for job in jobs), default=1)
    engine = Engine(runner, EngineLimits(rows=max(64, rows))) if isinstance(runner, GLM) else runner
    engine.run(*[engine.submit(job) for job in jobs])


def decode(
    runner: Runner,
    rows: Sequence[Sequence[int]],
    params: GenerationParams,
    *,
    padding: Sequence[int] | None = None,
    **options: Any,
) -> list[list[Answer]]:
    """The answers to every prompt. padding: how many leading tokens of each row are. options: as of `Prompt.of`."""
    config, jobs = _model(runner).config, []
    for row, skip in zip(rows, padding or [0] * len(rows), strict=True):
        jobs.append(make_job(Prompt.of(row[skip:], config, padding=row[:skip], **options), params, config))
    run_jobs(runner, jobs)
    return [job.answers for job in jobs]


def fill(
    runner: Runner,
    rows: Sequence[Sequence[int]],
    special: SpecialIds,
    *,
    forbidden: Iterable[int] = (),
    order: str = "shared",
    max_tokens: int = 64,
    running: bool = False,
    block_positions: bool = True,
    **params: Any,
) -> list[list[list[int]]]:
    """The spans of every text."""
    config = _model(runner).config
    asked = GenerationParams(max_new_tokens=max_tokens, **params)
    places: dict[str, Any] = {"running": running, "block_positions": block_positions, "order": order}
    jobs = [
        FillJob(row, asked, config, special, forbidden=forbidden, name=f"text {number}", **places)
        for number, row in enumerate(rows)
    ]
    run_jobs(runner, jobs)
    return [job.spans for job in jobs]

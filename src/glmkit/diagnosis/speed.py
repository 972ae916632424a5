"""Speed of a loaded model through its engine, beside the rate at which the memory of its weights can be read."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.devices import is_cpu, peak_memory
from glmkit.errors import RequestError
from glmkit.filled_model import empty_model
from glmkit.generate.engine.limits import Snapshot
from glmkit.loading import compute_notes
from glmkit.model import GLM
from glmkit.quant import Compute, set_compute, use_kernels
from glmkit.quant.layers import QuantLinear, QuantMatrix
from glmkit.quant.native import library
from glmkit.session import LM

_DRAWN = (1 << 22) + 4099  # random numbers that are repeated in every tensor; rows of different tensors differ
_SCALE = 3e-4  # of an integer of a random model: weights of about 0.02
_SHORT = 8  # tokens of the prompt whose first answer is timed
_DECODED_AFTER = 32  # tokens of the prompts that answers follow
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Prefill:
    """Prompts of so many tokens, one at a time: tokens/s, median and standard deviation of the repetitions."""

    tokens: int
    tokens_per_second: float
    deviation: float


@dataclass(frozen=True)
class Decode:
    """Answers side by side: tokens/s of all rows together, median and deviation, and what a step reads.

    bytes_per_second: of the weights that a step reads, each once. read_bytes_per_second: reading the same bytes and
    nothing else, the better of one and four streams a thread, in turn with the steps. read_share: median of the
    repetitions' ratios of both; None where there are no kernels to read with.
    """

    rows: int
    tokens_per_second: float
    deviation: float
    bytes_per_second: float
    read_bytes_per_second: float | None
    read_share: float | None


@dataclass(frozen=True)
class Speed:
    """Measurements of one model. Seconds, bytes, tokens/s; None for what was not measured or cannot be."""

    model: str
    family: str
    random: bool
    device: str
    dtype: str
    quantization: str | None
    compute: Compute | None
    kernels: str
    kernels_reason: str
    threads: int
    memory_nodes: int | None
    parameters: int
    weights_bytes: int
    step_bytes: int
    load_seconds: float
    first_token_seconds: float
    load_to_first_token_seconds: float
    rss_before_bytes: int
    peak_bytes: int
    prefill: list[Prefill]
    decode: list[Decode]
    repetitions: int
    new_tokens: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def measure(
    open_model: Callable[[], LM],
    name: str,
    *,
    prompts: Sequence[int],
    rows: Sequence[int],
    new_tokens: int,
    repetitions: int,
    random: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Speed:
    """Load a model and measure it. progress: hears what is measured next.

    prompts: lengths for prefill. rows: answers side by side. Prompts are random ids; answers are greedy, nothing ends
    them, and none is guessed ahead. The first answer is to a short prompt, right after loading. Raises RequestError
    for lengths that the model does not take.
    """
    progress("loading")
    chosen = library.kernels()  # built and tried out before the clock runs
    before = peak_memory(torch.device("cpu"))
    begun = time.perf_counter()
    lm = open_model()
    load_seconds = time.perf_counter() - begun
    ids = _Ids(lm.config)
    _check(ids, prompts, new_tokens)
    first_token_seconds = _run(lm, [ids.prompt(_SHORT)], 1)
    prefill = []
    for count in prompts:
        progress(f"prefill of {count} tokens")
        rates = [count / _run(lm, [ids.prompt(count)], 1) for _ in range(repetitions)]
        prefill.append(Prefill(count, statistics.median(rates), _deviation(rates)))
    tensors = step_tensors(lm.model)
    step_bytes = sum(tensor.nbytes for tensor in tensors)
    decode = []
    for count in rows:
        progress(f"decoding {count} rows")
        decode.append(_decode(lm, ids, tensors, count, new_tokens, repetitions))
    config = lm.config
    matrices = [module for module in lm.model.modules() if isinstance(module, QuantMatrix)]
    quantization = config.quantization
    return Speed(
        model=name,
        family=config.family,
        random=random,
        device=str(lm.model.device),
        dtype=str(lm.model.dtype).removeprefix("torch."),
        quantization=None if quantization is None else f"int{quantization.bits}, {quantization.about}",
        compute=matrices[0].compute if matrices else None,
        kernels=chosen.level,
        kernels_reason=chosen.reason,
        threads=library.thread_count(),
        memory_nodes=len([*_NODES.glob("node[0-9]*")]) or None,
        parameters=_numbers(lm.model),
        weights_bytes=sum(parameter.nbytes for parameter in lm.model.parameters()),
        step_bytes=step_bytes,
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        load_to_first_token_seconds=load_seconds + first_token_seconds,
        rss_before_bytes=before,
        peak_bytes=peak_memory(lm.model.device),
        prefill=prefill,
        decode=decode,
        repetitions=repetitions,
        new_tokens=new_tokens,
        notes=[*compute_notes(config, matrices[0].compute if matrices else None), *slower_than_floats(lm.model)],
    )


def step_tensors(model: GLM) -> list[Tensor]:
    """Tensors that every step reads whole: all but the tables from which only rows of the step's tokens are taken."""
    table = "model.embed_tokens." if model.config.tie_embeddings else None
    found = {}
    for name, parameter in model.named_parameters():
        looked_up = name.startswith("model.embed_") and (table is None or not name.startswith(table))
        if not looked_up and parameter.is_contiguous():
            found[parameter.data_ptr()] = parameter.detach()
    return list(found.values())


def slower_than_floats(model: GLM) -> list[str]:
    """A line for one row, and one for a prompt, whose products with integers are slower than with the same floats."""
    matrix = next((module for module in model.modules() if isinstance(module, QuantLinear)), None)
    if matrix is None or not is_cpu(model.device):
        return []
    weight_RC = matrix.floats(dtype=model.dtype)
    with_floats = partial(functional.linear, weight=weight_RC)
    ways: list[Callable[[Tensor], Tensor]] = [matrix.product, with_floats]
    notes = []
    for rows, what in ((1, "of one row"), (128, "of 128 rows")):
        x_NC = torch.randn(rows, matrix.num_columns, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        best = [float("inf")] * 2
        with torch.inference_mode():
            for turn in range(10):
                begun = time.perf_counter()
                ways[turn % 2](x_NC)
                best[turn % 2] = min(best[turn % 2], time.perf_counter() - begun)
        if best[0] > best[1]:
            size = sum(
                module.num_rows * module.num_columns for module in model.modules() if isinstance(module, QuantMatrix)
            )
            gigabytes = size * weight_RC.element_size() / 1e9
            notes.append(
                f"products {what} take {best[0] / best[1]:.1f} times as long with integers as with floats: "
                f"the float model, without quantize, is faster where {gigabytes:.1f} GB are free"
            )
    return notes


def random_model(config: GLMConfig, dtype: torch.dtype, compute: Compute | None) -> GLM:
    """A model of a config with random weights, quantised where the config is: a few random numbers, repeated."""
    model = empty_model(config).to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(_DRAWN, generator=generator).mul_(config.init_std)
    numbers = torch.randint(0, 256, (_DRAWN,), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "row_scale":
                parameter.fill_(_SCALE)
            elif kind == "group_scale":
                parameter.fill_(8 if parameter.dtype == torch.uint8 else 1)
            elif kind == "bias":
                parameter.zero_()
            elif "norm" in name.split(".")[-2]:
                parameter.fill_(1)
            else:
                _repeat(parameter.view(-1), numbers if parameter.dtype == torch.uint8 else floats.to(parameter.dtype))
    use_kernels(model)
    set_compute(model, compute)
    return model.eval()


class _Ids:
    """Prompts of random ids that a model reads as one whole text, no two with a common beginning."""

    def __init__(self, config: GLMConfig) -> None:
        self.config = config
        special = config.special
        known = set() if special is None else {value for value in vars(special).values() if value is not None}
        self._ids = [index for index in range(config.vocab_size) if index not in known]
        # Part A of families with a prefix mask ends with the mask that is filled and the start of the answer.
        opens = special is not None and config.mask == "prefix"
        self._end = [special.gmask, special.sop] if opens and special is not None else []
        self._random = Random(0)

    def prompt(self, count: int) -> list[int]:
        return [*self._random.choices(self._ids, k=max(1, count - len(self._end))), *self._end]


def _check(ids: _Ids, prompts: Sequence[int], new_tokens: int) -> None:
    most = ids.config.max_positions
    for name, value in (("prompt", max(prompts, default=1)), ("new", new_tokens + _DECODED_AFTER)):
        if value > most:
            raise RequestError(f"{name}: {value} tokens, the model takes {most}; give fewer", param=name)


def _run(lm: LM, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Seconds until all prompts, which begin together, have their answers."""
    options = {"max_new_tokens": new_tokens, "temperature": 0.0, "prompt_lookup": 0}
    jobs = [lm.continue_job(prompt, options, own_stops=False) for prompt in prompts]
    begun = time.perf_counter()
    lm.engine.run_all(jobs, rows=len(jobs))
    return time.perf_counter() - begun


def _decode(lm: LM, ids: _Ids, tensors: Sequence[Tensor], rows: int, new_tokens: int, repetitions: int) -> Decode:
    count, read_rates, step_rates = [], [], []
    step_bytes = sum(tensor.nbytes for tensor in tensors)
    reads = library.kernels().there and is_cpu(lm.model.device)
    for _ in range(repetitions):
        if reads:
            read_rates.append(max(_read_rate(tensors, streams) for streams in (1, 4)))
        with _step_times(lm, rows) as seconds:
            _run(lm, [ids.prompt(_DECODED_AFTER) for _ in range(rows)], new_tokens + 1)
        step = statistics.fmean(seconds)
        count.append(rows / step)
        step_rates.append(step_bytes / step)
    shares = [step / read for step, read in zip(step_rates, read_rates, strict=True)] if reads else []
    return Decode(
        rows,
        statistics.median(count),
        _deviation(count),
        statistics.median(step_rates),
        statistics.median(read_rates) if reads else None,
        statistics.median(shares) if reads else None,
    )


@contextmanager
def _step_times(lm: LM, rows: int) -> Iterator[list[float]]:
    """Seconds of the engine's steps in which all rows decode and no prompt is read."""
    seconds: list[float] = []
    ended = 0.0

    def heard(before: Snapshot, after: Snapshot) -> None:
        nonlocal ended
        now = time.perf_counter()
        own, other = before.counters, after.counters
        if ended and other.decode_rows - own.decode_rows == rows and other.read_tokens == own.read_tokens:
            seconds.append(now - ended)
        ended = now

    engine = lm.engine
    engine.on_step = heard
    try:
        yield seconds
    finally:
        engine.on_step = None


def _read_rate(tensors: Sequence[Tensor], streams: int) -> float:
    begun = time.perf_counter()
    num_bytes = library.read(tensors, streams)
    return num_bytes / (time.perf_counter() - begun)


def _numbers(model: GLM) -> int:
    """Weights of a model; those of an integer matrix counted as numbers, not as bytes, and its scales not."""
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, QuantMatrix)}
    floats = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in matrices or name.endswith(".bias")
    )
    return floats + sum(module.num_rows * module.num_columns for module in matrices.values())


def _repeat(flat: Tensor, values: Tensor) -> None:
    for start in range(0, len(flat), len(values)):
        part = flat[start : start + len(values)]
        part.copy_(values[: len(part)])


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

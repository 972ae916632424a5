"""Measurements for Prometheus: requests, time to the first token, tokens, load of the engine. One registry a server."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from glmkit.errors import GLMKitError
from glmkit.generate.engine import Snapshot, Ticket

from .error_responses import ApiError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)


class Metrics:
    """The measurements of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "glm_requests",
            "Answers sent.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "glm_request_seconds", "From a request to the end of its answer.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "glm_time_to_first_token_seconds", "From a request to its first token, waiting included.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._rows = Histogram(
            "glm_step_rows", "Answers that got a token in a step; sum / count is the mean batch size.", buckets=_ROWS,
            registry=self.registry,
        )  # fmt: skip
        self._written = Counter("glm_tokens_written", "Tokens of answers.", registry=self.registry)
        self._rejected = Counter(
            "glm_rejected", "Requests that were not taken, by reason.", ["reason"], registry=self.registry
        )
        self._cancelled = Counter(
            "glm_cancelled", "Jobs that were taken and not finished, by reason.", ["reason"], registry=self.registry
        )

    def show_engine(self, snapshot: Callable[[], Snapshot], waiting: Callable[[], int]) -> None:
        """Add the engine's own numbers, which are taken when somebody reads the metrics."""
        self.registry.register(_EngineNumbers(snapshot, waiting))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request that is over."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was not taken: queue_full, draining, api_key, too_large, too_slow."""
        self._rejected.labels(reason).inc()

    def stepped(self, before: Snapshot, after: Snapshot) -> None:
        """Count a step of the engine."""
        if rows := after.counters.decode_rows - before.counters.decode_rows:
            self._rows.observe(rows)
        self._written.inc(after.counters.written_tokens - before.counters.written_tokens)

    def ended(self, ticket: Ticket, began: float) -> None:
        """Count a job that is over, in whichever way. began: when its request came, in seconds of `time.monotonic`."""
        if ticket.began is not None:
            self._first.observe(ticket.began - began)
        if ticket.error is not None:
            self._cancelled.labels(_reason(ticket.error)).inc()

    def text(self) -> bytes:
        """The measurements in Prometheus' text format."""
        return generate_latest(self.registry)


def _reason(error: BaseException) -> str:
    if isinstance(error, ApiError):
        return error.code or "error"
    return "refused" if isinstance(error, GLMKitError) else "error"


class _EngineNumbers(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot], waiting: Callable[[], int]) -> None:
        self._snapshot, self._waiting = snapshot, waiting

    def collect(self) -> Iterable[Metric]:
        now = self._snapshot()
        counters = now.counters
        gauges = {
            "glm_requests_waiting": ("Requests that wait for a slot.", self._waiting()),
            "glm_requests_running": ("Requests that the engine works on.", now.running),
            "glm_rows_running": ("Answers being written.", now.rows),
            "glm_free_tokens": ("Free positions of the cache.", now.free_tokens),
        }
        counts = {
            "glm_steps": ("Steps of the engine.", counters.steps),
            "glm_tokens_read": ("Tokens of prompts that were read.", counters.read_tokens),
            "glm_tokens_reused": ("Tokens of prompts found in the cache.", counters.reused_tokens),
            "glm_tokens_drafted": ("Tokens fed ahead of the model's choice.", counters.drafted),
            "glm_tokens_accepted": ("Those of them that stayed.", counters.accepted),
            "glm_preemptions": ("Jobs that gave up their cache for a while.", counters.preemptions),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(name, help, value)
        for name, (help, value) in counts.items():
            yield CounterMetricFamily(name, help, value)

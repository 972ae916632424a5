"""Pictures of the loss: a PNG for a run (matplotlib, extra [train]), and inline SVG for a page, from the core alone."""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from glmkit.errors import ConfigError
from glmkit.files import atomic_write

Points = Sequence[tuple[float, float]]

# The SVG is as wide as a phone's column, so that the letters stay readable there.
WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 42
_MAX_POINTS = 400


def plot_losses(lines: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Training loss (raw and smoothed) and validation losses by mode against the step, as a PNG.

    `lines` are those of metrics.jsonl. Raises ConfigError when matplotlib is missing.
    """
    try:
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('the loss plot needs matplotlib; install it: pip install "glmkit[train]"') from error
    figure = Figure(figsize=(8, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(line["step"], line["loss"]) for line in lines if line.get("kind") == "train"]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
        axes.plot(steps, smooth(losses), color="tab:blue", label="training, smoothed")
    for name, points in sorted(_validation(lines).items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"validation {name}")
    axes.set(xlabel="step", ylabel="loss (nats per target)", title=title)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _validation(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if line.get("kind") == "validation":
            for mode, loss in line.get("losses", {}).items():
                curves.setdefault(mode, []).append((line["step"], loss))
    return curves


def loss_curve(training: Points, validation: Points, *, x_label: str, smoothing: float = 0.02) -> str:
    """An <svg> of the training loss (raw and smoothed) and the validation losses over (x, loss) points.

    The page's style sheet colours it. `smoothing` is the share of the training points averaged over. Points that are
    not finite are left out; without any, the result is a sentence.
    """
    raw = [(x, y) for x, y in training if math.isfinite(x) and math.isfinite(y)]
    checks = [(x, y) for x, y in validation if math.isfinite(x) and math.isfinite(y)]
    if not raw and not checks:
        return "<p>No losses were recorded.</p>"
    smoothed = list(zip([x for x, _ in raw], smooth([y for _, y in raw], smoothing), strict=True))
    # The scale follows the smoothed curve: single noisy batches may leave the picture.
    shown = smoothed + checks
    x_ticks = _ticks(0.0, max(x for x, _ in raw + checks))
    y_ticks = _ticks(min(y for _, y in shown), max(y for _, y in shown))
    x_low, x_high = 0.0, max(x_ticks[-1], max(x for x, _ in raw + checks))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + (point[0] - x_low) / ((x_high - x_low) or 1) * (WIDTH - _LEFT - _RIGHT)
        level = min(max((point[1] - y_low) / ((y_high - y_low) or 1), 0.0), 1.0)
        return f"{x:.1f},{HEIGHT - _BOTTOM - level * (HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = []
    for tick in y_ticks:
        y = place((x_low, tick)).split(",")[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        x = place((tick, y_low)).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>')
    if raw:
        parts.append(f'<polyline class="raw" points="{" ".join(map(place, _thinned(raw)))}"/>')
        parts.append(f'<polyline class="train" points="{" ".join(map(place, _thinned(smoothed)))}"/>')
    if len(checks) > 1:
        parts.append(f'<polyline class="validation" points="{" ".join(map(place, _thinned(checks)))}"/>')
    for point in _thinned(checks):
        x, y = place(point).split(",")
        parts.append(f'<circle class="validation" cx="{x}" cy="{y}" r="3"/>')
    centre = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{centre:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    last = checks[-1][1] if checks else smoothed[-1][1]
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Loss over {escape(x_label)}; {"validation" if checks else "training"} ends at {last:.3f}">'
        + "".join(parts)
        + "</svg>"
    )


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Exponential moving average over about `share` of the series, without the bias of its start.

    Kingma and Ba 2015 (arXiv 1412.6980), section 3.
    """
    decay = 1 - 1 / max(1.0, share * len(values))
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(average / weight)
    return result


def _thinned(points: Points) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / _MAX_POINTS))
    kept = list(points[::step])
    return kept if (len(points) - 1) % step == 0 else [*kept, points[-1]]


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / (about - 1)
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"

"""The loss curve as a picture."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmkit.errors import ConfigError
from glmkit.files import atomic_write


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


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Exponential moving average over about `share` of the series, without the bias of its start."""
    decay = 1 - 1 / max(1.0, share * len(values))
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(average / weight)
    return result


def _validation(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if line.get("kind") == "validation":
            for mode, loss in line.get("losses", {}).items():
                curves.setdefault(mode, []).append((line["step"], loss))
    return curves

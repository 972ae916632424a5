"""The pictures of the loss: a PNG, and the numbers of the inline SVG."""

import math
import re
import struct
import xml.etree.ElementTree as ElementTree

import pytest

from glmkit.train.plot import HEIGHT, WIDTH, loss_curve, plot_losses, smooth


def points(svg: str, name: str) -> list[tuple[float, float]]:
    line = next(node for node in ElementTree.fromstring(svg).iter("polyline") if node.get("class") == name)
    return [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]


def labels(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("text")]


def test_points_are_at_the_scale_of_the_ticks():
    svg = loss_curve([(0.0, 4.0), (500_000.0, 3.0), (1_000_000.0, 2.0)], [], x_label="tokens", smoothing=0.0)
    assert labels(svg) == ["2", "2.5", "3", "3.5", "4", "0", "200k", "400k", "600k", "800k", "1M", "tokens"]
    (x0, y0), (x1, y1), (x2, y2) = points(svg, "train")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    grid = [float(node.get("y1", "")) for node in ElementTree.fromstring(svg).iter("line")]
    assert (y0, y2) == (min(grid), max(grid))


def test_smoothing_is_a_moving_average_without_bias():
    assert smooth([1.0, 3.0], 1.0) == [1.0, pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)]
    assert smooth([2.0] * 9, 0.5)[-1] == pytest.approx(2.0)
    assert all(abs(y - 3.0) < 0.2 for y in smooth([3.0 + (-1) ** x for x in range(200)], 0.1)[20:])


def test_many_points_are_thinned_to_the_last_one():
    svg = loss_curve([(float(step), 5 - step / 10_000) for step in range(9_999)], [(9_000.0, 4.1)], x_label="step")
    line = points(svg, "train")
    assert 200 < len(line) <= 402
    assert line[-1][0] == pytest.approx(max(x for x, _ in line))
    assert 'ends at 4.100"' in svg


def test_everything_stays_inside_the_picture():
    svg = loss_curve([(1.0, 1e9), (2.0, 3.0), (3.0, 2.9), (4.0, math.nan)], [(3.0, 50.0), (2.0, 2.0)], x_label="<step>")
    for x, y in points(svg, "raw") + points(svg, "train") + points(svg, "validation"):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert "<step>" not in svg
    assert not re.search(r"nan|inf", svg)


def test_one_point_and_none():
    assert points(loss_curve([(5.0, 2.0)], [], x_label="step"), "train")
    assert "circle" in loss_curve([], [(5.0, 2.0)], x_label="step")
    assert loss_curve([], [(1.0, math.inf)], x_label="step") == "<p>No losses were recorded.</p>"


def test_plot_is_a_png(tmp_path):
    lines = [{"kind": "train", "step": i, "loss": 5 / i} for i in range(1, 50)]
    lines += [{"kind": "validation", "step": i, "loss": 1.0, "losses": {"bert": 5 / i, "gpt": 6 / i}} for i in (10, 40)]
    plot_losses(lines, tmp_path / "loss.png", title="run")
    data = (tmp_path / "loss.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 540)
    plot_losses([], tmp_path / "empty.png")


def test_smoothing():
    assert smooth([3.0] * 10) == pytest.approx([3.0] * 10)
    values = [0.0] * 100 + [1.0] * 100
    curve = smooth(values, share=0.02)  # a mean over about 4 values
    assert curve[99] == 0.0
    assert curve[100] == pytest.approx(0.25)
    assert curve[120] > 0.99

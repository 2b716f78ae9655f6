from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.pages.figures import histogram, line_chart, nice_ticks, percent_axis, roc_path, spread, thin


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), count=st.integers(3, 9))
def test_ticks_cover_the_range_at_equal_steps(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert np.diff(ticks) == pytest.approx(np.full(len(ticks) - 1, step), rel=1e-3)
    assert len(ticks) <= 2 * count + 2


def test_ticks_are_round() -> None:
    assert nice_ticks(0.03, 1.9, 5) == [0, 0.5, 1, 1.5, 2]
    assert nice_ticks(3, 3, 5)[0] <= 3 <= nice_ticks(3, 3, 5)[-1]


@given(st.lists(st.floats(0, 200), min_size=1, max_size=10))
def test_labels_are_spread_in_their_order(positions: list[float]) -> None:
    placed = spread(positions, gap=13, low=0, high=200)
    assert max(placed) <= 200
    assert all(b - a >= 13 - 0.11 for a, b in itertools.pairwise(sorted(placed)))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert [placed[i] for i in order] == sorted(placed)


def test_labels_that_are_clear_of_each_other_stay() -> None:
    assert spread([20, 60, 40], gap=13, low=0, high=200) == [20, 60, 40]


@given(st.integers(1, 2000))
def test_thinning_keeps_the_ends(n: int) -> None:
    points = np.cumsum(np.random.default_rng(n).random((n, 2)), axis=0)
    kept = thin(points)
    assert len(kept) <= 160
    assert (kept[0] == points[0]).all()
    assert (kept[-1] == points[-1]).all()


def test_the_roc_curve_runs_from_corner_to_corner() -> None:
    assert roc_path(np.array([True, True, False]), np.array([0.9, 0.8, 0.1])) == "M0,100L0,50L0,0L100,0"
    assert roc_path(np.array([True, False]), np.array([0.5, 0.5])) == "M0,100L100,0"
    assert roc_path(np.array([True, True]), np.array([0.5, 0.6])) is None
    assert roc_path(np.array([False]), np.array([0.5])) is None


@pytest.mark.parametrize(("lowest", "begins"), [(0.93, 0.9), (0.51, 0.5), (0.5, 0.4), (0.0, 0.0), (1.0, 0.9), (None, 0.0)])
def test_the_percent_axis_begins_below_the_smallest(lowest: float | None, begins: float) -> None:
    axis = percent_axis([lowest, 1.0] if lowest is not None else [None])
    assert axis.low == pytest.approx(begins)
    assert axis.ticks[0] == (0, f"{100 * begins:.0f}")
    assert axis.ticks[-1][0] <= 100
    strip = axis.strip(1.0, None, 1.0)
    assert strip is not None
    assert (strip.value, strip.low, strip.high) == (100, None, 100)
    assert axis.strip(None, None, None) is None


def test_a_chart_places_its_points_inside_its_axes() -> None:
    chart = line_chart({"train": [(1, 0.9), (2, 0.5)], "none": []}, title="Loss", marker=(2, "best"))
    assert chart is not None
    (line,) = chart.lines
    assert line.label_y is not None
    xs, ys = zip(*((x, y) for x, y, _ in line.marks), strict=True)
    assert all(chart.left <= x <= chart.width - chart.right for x in xs)
    assert all(chart.top <= y <= chart.height - chart.bottom for y in ys)
    assert ys[0] < ys[1]  # larger losses stand higher
    assert chart.marker == (xs[1], "best")
    assert line.marks[1][2] == "train, epoch 2: 0.500"


def test_a_single_epoch_can_be_drawn_and_none_is_left_out() -> None:
    chart = line_chart({"validation": [(1, 1.0)]}, title="Accuracy", percent=True)
    assert chart is not None
    assert chart.lines[0].marks[0][2] == "validation, epoch 1: 100.0 %"
    assert line_chart({"validation": []}, title="Loss") is None


@given(st.integers(1, 300))
def test_ticks_stay_inside_the_chart(epochs: int) -> None:
    chart = line_chart({"train": [(float(epoch), 1 / epoch) for epoch in range(1, epochs + 1)]}, title="Loss")
    assert chart is not None
    assert len(chart.x_ticks) >= 2
    assert all(chart.left <= x <= chart.width - chart.right for x, _ in chart.x_ticks)
    assert all(chart.top <= y <= chart.height - chart.bottom for y, _ in chart.y_ticks)
    assert len(chart.lines[0].marks) <= 60


def test_long_names_go_to_a_legend() -> None:
    chart = line_chart({"a-very-long-name-of-a-run": [(1, 0.9), (2, 0.5)]}, title="Loss")
    assert chart is not None
    assert chart.lines[0].label_y is None


def test_the_bars_of_each_series_sum_to_its_whole() -> None:
    chart = histogram({"few": [0, 1, 1], "many": [0] * 10 + [500]}, title="t", x_label="x", bin_width=4, marker=(5, "here"))
    assert chart is not None
    assert [bars.name for bars in chart.bars] == ["few", "many"]
    (few,), (many,) = (bars.boxes for bars in chart.bars)
    assert few[4] == "few, 0 to 3: 100.0 %"
    assert many[4] == "many, 8 to 11: 100.0 %"
    assert few[1] == many[1]
    for x, y, width, height, _ in (few, many):
        assert chart.left <= x <= x + width <= chart.width - chart.right
        assert chart.top <= y <= y + height <= chart.height - chart.bottom
    assert chart.marker is not None
    assert few[0] + few[2] < chart.marker[0] < many[0]


def test_a_bar_for_one_number_stands_over_it() -> None:
    chart = histogram({"images": [1, 3]}, title="t", x_label="x")
    assert chart is not None
    assert [label for _, label in chart.x_ticks] == ["0", "1"]
    for (tick, label), (x, _, width, _, tip) in zip(chart.x_ticks, chart.bars[0].boxes, strict=True):
        assert x + width / 2 == pytest.approx(tick, abs=1)
        assert tip.startswith(f"images, {label}: ")


def test_a_histogram_of_a_measure_is_in_its_unit() -> None:
    chart = histogram({"images": [0, 1, 1]}, title="t", x_label="x", unit=0.25, marker=(1.0, "limit"))
    assert chart is not None
    assert [tip for *_, tip in chart.bars[0].boxes] == ["images, 0.25 to 0.5: 50.0 %", "images, 0.5 to 0.75: 50.0 %"]
    assert chart.marker is not None
    assert chart.marker[0] <= chart.width - chart.right


def test_nothing_counted_is_no_histogram() -> None:
    assert histogram({"none": [0, 0]}, title="t", x_label="x", bin_width=4) is None

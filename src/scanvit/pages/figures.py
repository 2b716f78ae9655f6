"""The geometry of the pages' figures. The templates draw it as inline SVG.

Not Plotly: its script alone is 4 MB a page and needs ``script-src``; these figures need none to be seen, print sharply, and follow the
reader's light or dark mode. ``page.js`` makes their titles answer to pointer and keyboard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]

_MOST_POINTS = 160
_LONGEST_LABEL = 12
_MOST_MARKS = 60  # points of a line that get a tooltip of their own


@dataclass(frozen=True, kw_only=True)
class Line:
    name: str
    path: str
    """The ``d`` of an SVG path."""
    marks: list[tuple[float, float, str]]
    """(x, y, tooltip) in pixels of the view box."""
    label_y: float | None
    """Where the name stands at the right, clear of its neighbours. None where a legend names the lines."""
    style: int
    """Which of the style sheet's line styles."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    name: str
    boxes: list[tuple[float, float, float, float, str]]
    """(x, y, width, height, tooltip) in pixels of the view box."""
    style: int
    """Which of the style sheet's colours."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A frame with axes, and the lines or bars in it; all in pixels of the view box."""

    title: str
    x_label: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    marker: tuple[float, str] | None = None
    """A vertical line: (x, label)."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """An interval on a common axis; positions in percent of its width."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The common axis of a column of strips."""

    low: float
    high: float
    ticks: list[tuple[float, str]] = field(default_factory=list)
    """(position in percent, label)"""

    def strip(self, value: float | None, low: float | None, high: float | None) -> Strip | None:
        if value is None:
            return None
        return Strip(value=self.place(value), low=None if low is None else self.place(low), high=None if high is None else self.place(high))

    def place(self, value: float) -> float:
        """In percent of its width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def percent_axis(values: Sequence[float | None]) -> Axis:
    """From the multiple of 10 % below the smallest value to 100 %."""
    known = [value for value in values if value is not None]
    low = max(0.0, min(0.9, math.floor(min(known, default=0.0) * 10 - 1e-9) / 10))
    step = 0.25 if low == 0 else 0.2 if low < 0.5 else 0.1 if low < 0.8 else 0.05
    steps = [low + step * i for i in range(round((1 - low) / step) + 1) if low + step * i <= 1 + 1e-9]
    return Axis(low=low, high=1.0, ticks=[(round(100 * (tick - low) / (1 - low), 2), f"{100 * tick:.0f}") for tick in steps])


def difference_axis(values: Sequence[float | None]) -> Axis:
    """Around 0, in points (hundredths), as far as the values reach on either side."""
    reach = max([abs(value) for value in values if value is not None], default=0.0) or 0.01
    ticks = nice_ticks(-100 * reach, 100 * reach, 7)
    low, high = ticks[0] / 100, ticks[-1] / 100
    return Axis(low=low, high=high, ticks=[(round((tick / 100 - low) / (high - low) * 100, 2), f"{tick:+g}" if tick else "0") for tick in ticks])


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The rectangle of the plot inside the view box, and what it spans."""

    x_range: Point
    y_range: Point
    right: int
    """Space for the names of the lines."""
    width: int = 420
    height: int = 260
    left: int = 44
    top: int = 14
    bottom: int = 40

    def place(self, point: Point) -> Point:
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        x = self.left + (point[0] - x_low) / (x_high - x_low) * (self.width - self.left - self.right)
        y = self.height - self.bottom - (point[1] - y_low) / (y_high - y_low) * (self.height - self.top - self.bottom)
        return round(x, 1), round(y, 1)

    def chart(
        self, *, title: str, x_label: str, x_ticks: Sequence[float], y_ticks: Mapping[float, str], marker: tuple[float, str] | None, **drawn: Any
    ) -> Chart:
        """``x_ticks``, ``y_ticks`` ({value: label}) and ``marker`` in the units of the axes; ``drawn``: lines or bars."""
        x_low, y_low = self.x_range[0], self.y_range[0]
        return Chart(
            title=title,
            x_label=x_label,
            width=self.width,
            height=self.height,
            left=self.left,
            right=self.right,
            top=self.top,
            bottom=self.bottom,
            x_ticks=[(self.place((x, y_low))[0], f"{x:g}") for x in x_ticks],
            y_ticks=[(self.place((x_low, y))[1], label) for y, label in y_ticks.items()],
            marker=(self.place((marker[0], y_low))[0], marker[1]) if marker else None,
            **drawn,
        )


def line_chart(
    series: Mapping[str, Sequence[Point]], *, title: str, x_label: str = "epoch", marker: tuple[float, str] | None = None, percent: bool = False
) -> Chart | None:
    """Lines over a shared x, which counts from 0. ``marker``: (x, label). ``percent``: values are shares. None where no line has a point."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    direct = len(series) <= 3 and max(map(len, series)) <= _LONGEST_LABEL
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    x_high = max(1.0, *xs)
    y_ticks = nice_ticks(min(ys), min(1.0, max(ys)) if percent else max(ys), 5)
    y_range = (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    frame = _Frame(x_range=(0.0, x_high), y_range=y_range, right=16 + 7 * max(map(len, series)) if direct else 16)
    x_ticks = [x for x in nice_ticks(0.0, x_high, 6) if x <= x_high and x.is_integer()]
    return frame.chart(
        title=title,
        x_label=x_label,
        x_ticks=x_ticks,
        y_ticks={y: f"{100 * y:g}" if percent else f"{y:g}" for y in y_ticks},
        marker=marker if marker and 0 <= marker[0] <= x_high else None,
        lines=_lines(series, frame, x_label=x_label, percent=percent, direct=direct),
    )


def _lines(series: Mapping[str, Sequence[Point]], frame: _Frame, *, x_label: str, percent: bool, direct: bool) -> list[Line]:
    placed = {name: [frame.place(point) for point in points] for name, points in series.items()}
    label_ys = spread([points[-1][1] for points in placed.values()], gap=13, low=frame.top + 4, high=frame.height - frame.bottom)
    lines = []
    for i, (name, points) in enumerate(series.items()):
        marks = []
        for x, y in points[:: math.ceil(len(points) / _MOST_MARKS)]:
            shown = f"{100 * y:.1f} %" if percent else f"{y:.3f}"
            marks.append((*frame.place((x, y)), f"{name}, {x_label} {x:g}: {shown}"))
        lines.append(Line(name=name, path=svg_path(placed[name]), marks=marks, label_y=label_ys[i] if direct else None, style=i % 8))
    return lines


def histogram(
    series: Mapping[str, Sequence[int]],
    *,
    title: str,
    x_label: str,
    bin_width: int = 1,
    unit: float | None = None,
    marker: tuple[float, str] | None = None,
) -> Chart | None:
    """Bars for counts at 0, 1, 2, ..., as shares of each series, in bins; where the series overlap, one shows through. None where nothing was counted.

    ``unit``: what a step of the counts is worth on the x axis, where it is a measure; left out, it counts things. ``marker``: (x, label).
    """
    counts = {name: np.asarray(values, np.float64) for name, values in series.items() if sum(values)}
    if not counts:
        return None
    last = max(int(np.flatnonzero(values)[-1]) for values in counts.values())
    width = bin_width * (unit or 1)
    bins = max(last, math.ceil(marker[0] / (unit or 1) - 1e-9) if marker else 0) // bin_width + 1
    shares = {}
    for name, values in counts.items():
        padded = np.zeros(bins * bin_width)
        padded[: min(len(values), len(padded))] = values[: len(padded)]
        shares[name] = padded.reshape(bins, bin_width).sum(axis=1) / values.sum()
    y_ticks = nice_ticks(0.0, max(float(share.max()) for share in shares.values()), 4)
    # A bar for one number stands over it, a bar for a span begins where the span does.
    shift = 0.5 if unit is None and bin_width == 1 else 0.0
    frame = _Frame(x_range=(-shift, bins * width - shift), y_range=(0.0, y_ticks[-1]), right=16, width=560, height=230)
    bars = []
    for number, (name, share) in enumerate(shares.items()):
        boxes = []
        for position in np.flatnonzero(share):
            left = position * width - shift
            (x, y), (right, base) = frame.place((left, share[position])), frame.place((left + width, 0.0))
            until = f"{(position + 1) * width:g}" if unit else position * bin_width + bin_width - 1
            span = f"{position}" if width == 1 else f"{position * width:g} to {until}"
            tip = f"{name}, {span}: {100 * share[position]:.1f} %"
            boxes.append((float(x), float(y), round(float(right - x) - 0.6, 1), round(float(max(base - y, 1.0)), 1), tip))
        bars.append(Bars(name=name, boxes=boxes, style=number % 8))
    end = bins * width - shift
    return frame.chart(
        title=title,
        x_label=x_label,
        x_ticks=[x for x in nice_ticks(0.0, end, 8) if x <= end and (unit or x.is_integer())],
        y_ticks={y: f"{100 * y:g}" for y in y_ticks},
        marker=marker,
        bars=bars,
    )


def roc_path(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> str | None:
    """The ROC curve in a box of 100 x 100, as an SVG path. None where the curve is not defined."""
    from sklearn.metrics import roc_curve

    if positive.all() or not positive.any():
        return None
    false_positive_rate, true_positive_rate, _ = roc_curve(positive, scores)
    points = thin(np.stack([100 * false_positive_rate, 100 - 100 * true_positive_rate], axis=1))
    return svg_path([(round(float(x), 1), round(float(y), 1)) for x, y in points])


def thin(points: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """(N, 2) -> at most 160 of the points, evenly along the curve's length, both ends kept."""
    if len(points) <= _MOST_POINTS:
        return points
    length = np.concatenate([[0.0], np.abs(np.diff(points, axis=0)).sum(axis=1).cumsum()])
    return points[np.unique(np.searchsorted(length, np.linspace(0, length[-1], _MOST_POINTS)))]


def svg_path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that cover low..high."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(1, count - 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(float(i * step), 10) for i in range(first, last + 1)]


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, as little as needed, in the order they have; the last one stays above ``high`` where there is room."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    floor = low
    for i in order:
        placed[i] = floor = max(floor, positions[i])
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(ceiling, placed[i])
        ceiling -= gap
    return [round(y, 1) for y in placed]

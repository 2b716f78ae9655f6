"""Subgroups: the figures of the images that share a value of a manifest column, and where they differ most.

A network that is right on the whole may be wrong for the few: women, the old, one scanner. A group with few patients cannot show that it
is not, and is told apart from one that did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError
from .estimates import Estimate, Estimator
from .image_facts import manifest_rows
from .metrics import Array, MetricComputer
from .predictions import Predictions

if TYPE_CHECKING:
    from ..data.pack import Pack

FEW_PATIENTS = 30
"""Groups with fewer are warned of, and take no part in the search for the largest gap."""
MOST_GROUPS = 12
"""The largest of an axis; the images of the others are one more group."""
FIGURES = ("accuracy", "balanced_accuracy", "macro_auroc", "ece")
UNKNOWN = "not recorded"
_PLAIN = ("source", "format")
_SIZES = {"width": "width_px", "height": "height_px"}
_MOST_SIZES = 6
"""With more different sizes the images are cut into quarters by size."""
_ALIKE = 0.1
"""Groups whose shares of the classes differ by less, summed and halved, are taken to be of one mix."""


@dataclass(frozen=True, kw_only=True)
class Group:
    name: str
    images: int
    patients: int
    figures: dict[str, Estimate]
    """By the names in ``FIGURES``."""
    recall: dict[str, Estimate]
    """{class: sensitivity}, of the classes that the group holds."""
    warning: str | None = None

    @property
    def is_small(self) -> bool:
        return self.patients < FEW_PATIENTS


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest difference of one figure between two groups."""

    figure: str
    """accuracy or recall"""
    class_name: str | None
    better: str
    worse: str
    difference: Estimate
    """better - worse, over resamples of the patients of both groups."""
    compared: int
    """Differences that were looked at to find this one."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    name: str
    groups: list[Group]
    gaps: list[Gap] = field(default_factory=list)
    """Of accuracy, and of the sensitivity to one class; none where fewer than two groups are large enough."""

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")


def gap_sentences(axis: Axis) -> list[str]:
    """What the gaps of an axis say, or why there is none."""
    if len(axis.groups) > 1 and not axis.gaps:
        return [f"No two groups by {axis.title} have {FEW_PATIENTS} patients: where the network is worse cannot be told."]
    return [_gap_sentence(gap, axis.title) for gap in axis.gaps]


def _gap_sentence(gap: Gap, title: str) -> str:
    value, low, high = gap.difference.value or 0.0, gap.difference.low, gap.difference.high
    what = "accuracy" if gap.class_name is None else f"sensitivity to {gap.class_name}"
    interval = "" if low is None or high is None else f" (interval {100 * low:.1f} to {100 * high:.1f})"
    clear = low is not None and low > 0
    looked = "" if gap.compared == 1 else f" It is the largest of {gap.compared} that were looked at, which the interval does not allow for."
    verdict = "" if clear else " Chance alone may give as much."
    note = f" {gap.note}" if gap.note else ""
    return f"Largest gap in {what} by {title}: {gap.worse} lies {100 * value:.1f} points{interval} below {gap.better}.{verdict}{looked}{note}"


def known_axes(pack: Pack) -> list[str]:
    """What ``--by`` takes for this pack: source, format, width, height, and the columns that its sources were asked to keep."""
    return [*_PLAIN, *_SIZES, *pack.attributes]


def subgroups(predictions: Predictions, pack: Pack, *, by: Sequence[str] | None = None, draws: int, seed: int) -> list[Axis]:
    """``by``: the axes. Left out: the sources and what the sources file asked to keep, wherever there is more than one group.

    Raises ConfigError for an axis that the pack does not have.
    """
    names = list(dict.fromkeys(("source", *pack.attributes) if by is None else by))
    values = axis_values(pack, predictions.image_ids, names)
    axes = [measure_axis(name, predictions, values[name], draws=draws, seed=seed) for name in names]
    return [axis for axis in axes if by is not None or len(axis.groups) > 1]


def axis_values(pack: Pack, image_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """{axis: the group of each image}. Raises ConfigError."""
    if unknown := next((name for name in names if name not in known_axes(pack)), None):
        hint = f"{pack.path} has: {', '.join(known_axes(pack))}. Others enter a pack by 'metadata' or 'dicom_tags' in its sources file."
        raise ConfigError(f"There is no column {unknown!r} to form groups by.", hint=hint)
    if not names:
        return {}
    table = pack.columns(*(_SIZES.get(name, name) for name in names)).take(manifest_rows(pack, image_ids))
    columns = {name: table[_SIZES.get(name, name)] for name in names}
    return {name: _bands(column.to_numpy()) if name in _SIZES else [value or UNKNOWN for value in column.to_pylist()] for name, column in columns.items()}


def measure_axis(name: str, predictions: Predictions, values: Sequence[str], *, draws: int, seed: int) -> Axis:
    """``values``: the group of each image."""
    rows = _members(values)
    groups = [_measure_group(group, predictions.take(members.tolist()), draws=draws, seed=seed) for group, members in rows.items()]
    large = {group.name: rows[group.name] for group in groups if group.patients >= FEW_PATIENTS and group.name != UNKNOWN}
    gaps = [_largest_gap(figure, groups, large, predictions, draws=draws, seed=seed) for figure in ("accuracy", "recall")]
    return Axis(name=name, groups=groups, gaps=[gap for gap in gaps if gap])


def _members(values: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """{group: its images}: bands in their order, other groups the largest first."""
    found, index = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True)
    rows = {str(name): np.flatnonzero(index == k) for k, name in enumerate(found)}
    banded = all(name[:1].isdigit() or name == UNKNOWN for name in rows)
    order = sorted(rows, key=lambda name: (name == UNKNOWN, _number(name) if banded else -len(rows[name]), name))
    if len(order) <= MOST_GROUPS:
        return {name: rows[name] for name in order}
    kept = set(sorted(order, key=lambda name: -len(rows[name]))[:MOST_GROUPS])
    others = np.sort(np.concatenate([rows[name] for name in order if name not in kept]))
    return {name: rows[name] for name in order if name in kept} | {f"{len(order) - MOST_GROUPS} others": others}


def _number(name: str) -> int:
    digits = "".join(c if c.isdigit() else " " for c in name.replace(",", "")).split()
    return int(digits[0]) if digits else 0


def _measure_group(name: str, part: Predictions, *, draws: int, seed: int) -> Group:
    estimator = Estimator(part.patient_ids, draws=draws, seed=seed)
    estimated = estimator(MetricComputer.of(part))
    held = np.unique(part.targets).tolist()
    recall = {part.class_names[k]: estimated.of("recall", k, patients=estimator.patients_of(part.targets == k), is_share=True) for k in held}

    def estimate(figure: str) -> Estimate:
        behind = estimator.patients_behind(figure, part)
        return estimated.of(figure, patients=behind, of_class=True, undefined="Needs images of two classes.", is_share=figure == "accuracy")

    return Group(
        name=name,
        images=len(part),
        patients=estimator.patients,
        figures={figure: estimate(figure) for figure in FIGURES},
        recall=recall,
        warning=_warning(estimator.patients, [part.class_names[k] for k in held], part.class_names),
    )


def _warning(patients: int, held: Sequence[str], class_names: Sequence[str]) -> str | None:
    said = []
    if patients < FEW_PATIENTS:
        said.append(f"{'1 patient' if patients == 1 else f'{patients} patients'} only: too few to say anything.")
    if len(held) == 1:
        said.append(f"Every image is {held[0]}: its accuracy is the sensitivity to that class.")
    elif len(held) < len(class_names):
        said.append(f"It has no image of {', '.join(name for name in class_names if name not in held)}.")
    return " ".join(said) or None


def _largest_gap(
    figure: str, groups: Sequence[Group], large: Mapping[str, npt.NDArray[np.int64]], predictions: Predictions, *, draws: int, seed: int
) -> Gap | None:
    """Between two groups that are both large enough, for a sensitivity also in patients of the class."""
    found = []
    for one, other in combinations([group for group in groups if group.name in large], 2):
        for name in [None] if figure == "accuracy" else [name for name in one.recall if name in other.recall]:
            if name is not None and min(_patients_of(predictions, large[group.name], name) for group in (one, other)) < FEW_PATIENTS:
                continue
            values = [(group.figures["accuracy"] if name is None else group.recall[name]).value or 0.0 for group in (one, other)]
            better, worse = (one, other) if values[0] >= values[1] else (other, one)
            found.append((abs(values[0] - values[1]), better.name, worse.name, name))
    if not found:
        return None
    _, better_name, worse_name, class_name = max(found, key=lambda gap: gap[0])
    rows = [large[better_name], large[worse_name]]
    return Gap(
        figure=figure,
        class_name=class_name,
        better=better_name,
        worse=worse_name,
        difference=_difference(predictions, rows, figure, class_name, draws=draws, seed=seed),
        compared=len(found),
        note=_mix_note(predictions, rows) if figure == "accuracy" else None,
    )


def _patients_of(predictions: Predictions, rows: npt.NDArray[np.int64], class_name: str) -> int:
    k = predictions.class_names.index(class_name)
    return len({predictions.patient_ids[row] for row in rows.tolist() if predictions.targets[row] == k})


def _difference(predictions: Predictions, rows: Sequence[npt.NDArray[np.int64]], figure: str, class_name: str | None, *, draws: int, seed: int) -> Estimate:
    """Over resamples of the patients of both groups: a patient may have images in each."""
    part = predictions.take(np.concatenate(rows).tolist())
    computers = [MetricComputer.of(predictions.take(members.tolist())) for members in rows]
    first = len(rows[0])

    def figures(weights: Array) -> dict[str, Array]:
        better, worse = (computer(half)[figure] for computer, half in zip(computers, (weights[:first], weights[first:]), strict=True))
        return {figure: better - worse}

    estimated = Estimator(part.patient_ids, draws=draws, seed=seed)(figures)
    return estimated.of(figure, None if class_name is None else predictions.class_names.index(class_name))


def _mix_note(predictions: Predictions, rows: Sequence[npt.NDArray[np.int64]]) -> str | None:
    shares = [np.bincount(predictions.targets[members], minlength=len(predictions.class_names)) / len(members) for members in rows]
    if np.abs(shares[0] - shares[1]).sum() / 2 < _ALIKE:
        return None
    return "The two groups do not hold the classes in the same shares: part of this gap may be that alone."


def _bands(sizes: npt.NDArray[np.integer]) -> list[str]:
    different = np.unique(sizes)
    if len(different) <= _MOST_SIZES:
        return [f"{size:,} px" for size in sizes.tolist()]
    edges = np.unique(np.quantile(sizes, [0.25, 0.5, 0.75], method="higher"))
    lows, highs = np.r_[different[0], edges[:-1] + 1, edges[-1] + 1], np.r_[edges, different[-1]]
    names = [f"{low:,} to {high:,} px" for low, high in zip(lows.tolist(), highs.tolist(), strict=True)]
    return [names[band] for band in np.searchsorted(edges, sizes, side="left").tolist()]

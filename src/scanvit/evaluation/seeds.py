"""Runs of one setting with several seeds: their mean and spread, which one run alone cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from .estimates import Estimate, Estimated, Estimator
from .metrics import Array, MetricComputer
from .predictions import Predictions
from .scores import Scores

_SAME = 1e-9
FIGURES = ("accuracy", "balanced_accuracy", "log_loss", "macro_auroc")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One figure over the runs of a group."""

    mean: float
    sd: float | None
    """With n - 1; None of a single run."""
    low: float
    high: float
    """The lowest and the highest of the runs."""
    over_patients: Estimate
    """The mean once more, with its interval over patients: how far the choice of test patients may have moved it."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    name: str
    labels: list[str]
    seeds: list[int | None]
    figures: dict[str, Spread | None]
    """By the names in ``FIGURES``; None where a run has no such figure."""


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """``second`` - ``first`` of the means of two groups."""

    first: str
    second: str
    figure: str
    over_patients: Estimate
    """With these very runs, and other test patients."""
    over_seeds: Estimate
    """With these very patients, and other seeds: Welch's interval (Welch 1947). Needs two runs in each group."""
    p_value: float | None
    """Of Welch's test over the seeds."""


def group_runs(
    names: Sequence[str], labels: Sequence[str], seeds: Sequence[int | None], scores: Sequence[Scores], tables: Sequence[Predictions] | None
) -> list[SeedGroup]:
    """``names``: the group of each run. ``tables``: predictions of the same images by every run; None where they share none."""
    groups = []
    for name in dict.fromkeys(names):
        members = [i for i, other in enumerate(names) if other == name]
        over_patients = _over_patients([tables[i] for i in members], scores[0]) if tables else {}
        figures = {figure: _spread([scores[i].overall[figure].value for i in members], over_patients.get(figure)) for figure in FIGURES}
        groups.append(SeedGroup(name=name, labels=[labels[i] for i in members], seeds=[seeds[i] for i in members], figures=figures))
    return groups


def group_differences(names: Sequence[str], scores: Sequence[Scores], tables: Sequence[Predictions] | None) -> list[GroupDifference]:
    """Every other group against the first, for accuracy and macro AUROC."""
    first, *others = dict.fromkeys(names)
    found = []
    for other in others:
        members = [[i for i, name in enumerate(names) if name == group] for group in (first, other)]
        patients = _difference_over_patients([[tables[i] for i in part] for part in members], scores[0]) if tables else {}
        for figure in ("accuracy", "macro_auroc"):
            values = [[scores[i].overall[figure].value for i in part] for part in members]
            if any(value is None for part in values for value in part):
                continue
            over_seeds, p_value = _welch(*([float(value or 0.0) for value in part] for part in values))
            over_patients = patients.get(figure, Estimate(value=over_seeds.value, note="The runs share no images."))
            found.append(GroupDifference(first=first, second=other, figure=figure, over_patients=over_patients, over_seeds=over_seeds, p_value=p_value))
    return found


def _spread(values: Sequence[float | None], over_patients: Estimate | None) -> Spread | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    middle = mean(known)
    sd = stdev(known) if len(known) > 1 else None
    return Spread(mean=middle, sd=sd, low=min(known), high=max(known), over_patients=over_patients or Estimate(value=middle, note="The runs share no images."))


def _mean_of(tables: Sequence[Predictions]):  # type: ignore[no-untyped-def]
    computers = [MetricComputer.of(table) for table in tables]

    def figures(weights: Array) -> dict[str, Array]:
        computed = [computer(weights) for computer in computers]
        return {name: np.mean([values[name] for values in computed], axis=0) for name in FIGURES}

    return figures


def _over_patients(tables: Sequence[Predictions], about: Scores) -> dict[str, Estimate]:
    estimator = _estimator(tables[0], about)
    estimated = estimator(_mean_of(tables))
    return _estimates(estimated, estimator, tables)


def _difference_over_patients(tables: Sequence[Sequence[Predictions]], about: Scores) -> dict[str, Estimate]:
    first, second = (_mean_of(part) for part in tables)

    def figures(weights: Array) -> dict[str, Array]:
        before, after = first(weights), second(weights)
        return {name: after[name] - before[name] for name in FIGURES}

    estimator = _estimator(tables[0][0], about)
    return _estimates(estimator(figures), estimator, tables[0])


def _estimator(table: Predictions, about: Scores) -> Estimator:
    return Estimator(table.patient_ids, draws=about.interval["draws"], seed=about.interval["seed"])


def _estimates(estimated: Estimated, estimator: Estimator, tables: Sequence[Predictions]) -> dict[str, Estimate]:
    behind = {name: estimator.patients_behind(name, tables[0]) for name in FIGURES}  # of the targets, which all tables share
    return {name: estimated.of(name, patients=behind[name], of_class=True) for name in FIGURES}


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[Estimate, float | None]:
    from scipy import stats

    difference = mean(second) - mean(first)
    if min(len(first), len(second)) < 2:
        return Estimate(value=difference, note="No interval: needs two runs in each group."), None
    if max(stdev(first), stdev(second)) < _SAME:
        return Estimate(value=difference, note="No interval: the runs of each group are the same."), None
    parts = [stdev(values) ** 2 / len(values) for values in (first, second)]
    error = sum(parts) ** 0.5
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value=difference, low=difference - reach, high=difference + reach), float(2 * stats.t.sf(abs(difference) / error, freedom))

"""A figure with its interval, or with the sentence that says why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .bootstrap import LEVEL, SAME, Figures, Resampled, bca_interval, bootstrap, patient_index
from .metrics import Array

if TYPE_CHECKING:
    from .predictions import Predictions

FEWEST_PATIENTS = 5
"""With fewer behind a figure, resamples are of a handful of combinations, and an interval may be far too narrow."""
_ONE_SIDED = 0.975
_BESIDE = "No interval: resampling patients moves this figure to one side nearly always, so that the resamples do not enclose it."


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval. None: undefined, and ``note`` says why. A note beside a figure qualifies it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "note" or value is not None}


class Estimator:
    """Estimates from resamples of the patients of a set of images: the same resamples, whatever is estimated."""

    def __init__(self, patient_ids: Sequence[str], *, draws: int, seed: int) -> None:
        self.index, self.patients = patient_index(list(patient_ids))
        self._draws, self._seed = draws, seed

    def __call__(self, figures: Figures) -> Estimated:
        point = figures(np.ones((len(self.index), 1)))
        resampled = self.patients > 1 and self._draws
        sampled = bootstrap(figures, self.index, self.patients, draws=self._draws, seed=self._seed) if resampled else None
        return Estimated(point, sampled, self.patients)

    def patients_of(self, images: np.ndarray) -> int:
        """How many patients the chosen images, (N,) bool, are of."""
        return len(np.unique(self.index[images]))

    def patients_behind(self, figure: str, table: Predictions, k: int | None = None) -> int:
        """How many patients stand behind a figure of class ``k``: what decides whether resampling them says anything. Behind a mean over the classes
        that ``table`` holds stand as few as behind the class with the fewest."""
        if k is None:
            of_class = "recall" if figure == "balanced_accuracy" else figure.removeprefix("macro_").removeprefix("weighted_")
            if of_class == figure:
                return self.patients
            classes = np.unique(table.targets).tolist()
            # Without images of a class its mean is undefined, whatever its figure rests on.
            own = [min(self.patients_of(table.targets == present), self.patients_behind(of_class, table, present)) for present in classes]
            return min(own, default=0)
        actual, called = table.targets == k, table.predicted == k
        match figure:
            case "precision":
                return self.patients_of(called)
            case "npv":
                return self.patients_of(~called)
            case "specificity":
                return self.patients_of(~actual)
            case "auroc" | "precision_at_prevalence" | "npv_at_prevalence":
                return min(self.patients_of(actual), self.patients_of(~actual))
            case "class_ece" | "called":
                return self.patients
            case _:
                return self.patients_of(actual)


class Estimated:
    """The figures of one set of images and their resamples; ``of`` takes one out."""

    def __init__(self, point: dict[str, Array], sampled: Resampled | None, patients: int) -> None:
        self._point, self._sampled, self._patients = point, sampled, patients

    def minus(self, other: Estimated, name: str, column: int | None = None, *, patients: int, undefined: str = "Undefined for one of the two.") -> Estimate:
        """This figure less that of other images of other patients: both are resampled on their own (Efron and Tibshirani 1993, section 8.3).

        ``patients``: how many stand behind it in the set that has fewer.
        """
        at: Any = slice(None) if column is None else (slice(None), column)
        values = [float(estimated._point[name][at][0]) for estimated in (self, other)]
        difference = values[0] - values[1]
        if np.isnan(difference):
            return Estimate(value=None, note=undefined)
        if patients < 2:
            return Estimate(value=difference, note=f"No interval: behind one of the two stands {_count_patients(patients)}, which cannot be resampled.")
        if self._sampled is None or other._sampled is None:
            return Estimate(value=difference, note="No interval: one of the two has a single patient, or no draws were made.")
        draws = self._sampled.draws[name][at] - other._sampled.draws[name][at]
        if is_beside(difference, draws):
            return Estimate(value=difference, note=_BESIDE)
        left_out = [self._sampled.left_out[name][at] - values[1], values[0] - other._sampled.left_out[name][at]]
        interval = bca_interval(difference, draws, np.concatenate(left_out))
        if interval is None or interval[0] == interval[1]:
            return Estimate(value=difference, note="No interval: the resamples do not tell one.")
        few = f"Behind one of the two stand {_count_patients(patients)}: the interval says little." if patients < FEWEST_PATIENTS else None
        return Estimate(value=difference, low=interval[0], high=interval[1], note=few)

    def of(
        self,
        name: str,
        column: int | None = None,
        *,
        patients: int | None = None,
        of_class: bool = False,
        undefined: str = "Undefined.",
        is_share: bool = False,
    ) -> Estimate:
        """``column``: of one class. ``patients``: how many stand behind it, if not all; ``of_class``: those of the class with the fewest.
        ``is_share``: a mean of right and wrong answers."""
        at: Any = slice(None) if column is None else (slice(None), column)
        value = float(self._point[name][at][0])
        behind = self._patients if patients is None else patients
        if np.isnan(value):
            return Estimate(value=None, note=undefined)
        if behind < 2:
            of_all = f" of {self._patients}" if behind < self._patients else ""
            return Estimate(value=value, note=f"No interval: it rests on {_count_patients(behind)}{of_all}, too few to resample.")
        if self._sampled is None:
            return Estimate(value=value, note="No interval: no draws were made.")
        if is_beside(value, self._sampled.draws[name][at]):
            return Estimate(value=value, note=_BESIDE)
        interval = bca_interval(value, self._sampled.draws[name][at], self._sampled.left_out[name][at])
        if interval is None:
            return Estimate(value=value, note=f"No interval: the figure is undefined in more than half of the resamples ({_count_patients(behind)}).")
        if interval[0] == interval[1]:
            return Estimate(value=value, note=_why_no_spread(behind, is_share=is_share))
        few = _warn_of_few(behind, self._patients, of_class=of_class) if behind < FEWEST_PATIENTS else None
        return Estimate(value=value, low=interval[0], high=interval[1], note=few)


def _warn_of_few(patients: int, of_all: int, *, of_class: bool) -> str:
    if patients >= of_all:
        return f"Behind it stand {_count_patients(patients)} in all: the interval says little."
    return f"Behind it stand {_count_patients(patients)}{' of one class' if of_class else f', of {of_all}'}: the interval says little."


def is_beside(value: float, draws: Array) -> bool:
    """Do nearly all resamples lie on one side of the figure? An error of calibration near 0 can only grow when patients are drawn twice: BCa
    would move both ends of the interval to where there are no draws."""
    defined = draws[~np.isnan(draws)]
    sides = [int((defined < value - SAME).sum()), int((defined > value + SAME).sum())]
    return len(defined) > 0 and max(sides) > _ONE_SIDED * len(defined)


def _why_no_spread(patients: int, *, is_share: bool) -> str:
    """Where all patients agree, every resample does: an interval of no width would be a false claim."""
    if not is_share:
        return f"No interval: every resample of the {_count_patients(patients)} gives the same figure."
    # The exact one-sided bound (Clopper and Pearson 1934) for no exception among n.
    possible = 1 - (1 - LEVEL) ** (1 / patients)
    return f"No interval: the {_count_patients(patients)} behind it all agree. Up to {possible:.1%} of exceptions are compatible with that ({LEVEL:.0%} bound)."


def _count_patients(patients: int) -> str:
    return "1 patient" if patients == 1 else f"{patients} patients"

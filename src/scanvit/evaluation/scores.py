"""scores-SPLIT.json: every figure of one run on one split, each with its interval, or with a note that says why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import RunError, RunMissingError
from ..storage.atomic import write_json
from .bootstrap import LEVEL, METHOD, bootstrap, patient_index, percentile_interval
from .metrics import OVERALL, PER_CLASS, MetricComputer
from .predictions import Predictions

FORMAT = 1
_SHARES = ("accuracy", "precision", "recall", "specificity")
_WHY_UNDEFINED = {
    "precision": "No image was given this class.",
    "recall": "The split has no image of this class.",
    "specificity": "Every image of the split is of this class.",
    "f1": "The split has no image of this class, and none was given it.",
    "auroc": "Needs images of this class and of another.",
    "average_precision": "The split has no image of this class.",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval. None: undefined, and ``note`` says why. A note beside a figure qualifies it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "note" or value is not None}


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    images: int
    patients: int
    figures: dict[str, Estimate]
    """By the names in ``metrics.PER_CLASS``."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    run: str
    experiment: str
    split: str
    images: int
    patients: int
    class_names: list[str]
    fingerprint: str
    checkpoint: dict[str, Any]
    """epoch (finished ones), step, val_loss, val_accuracy of the weights that were scored."""
    interval: dict[str, Any]
    """level, method, draws, seed."""
    overall: dict[str, Estimate]
    """By the names in ``metrics.OVERALL``."""
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]]
    """Rows are targets, columns predictions."""
    audit: list[dict[str, Any]]
    """The gates of the pack's audit that did not pass when the run was trained."""
    cost: dict[str, Any] = field(default_factory=dict)
    """train_time_s, images_per_s, epochs, parameters, device, processes; None where the run does not tell."""

    def to_dict(self) -> dict[str, Any]:
        classes = {
            name: {"images": scores.images, "patients": scores.patients} | {figure: estimate.to_dict() for figure, estimate in scores.figures.items()}
            for name, scores in self.per_class.items()
        }
        shallow = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"format": FORMAT} | shallow | {"overall": {name: estimate.to_dict() for name, estimate in self.overall.items()}, "per_class": classes}

    def save(self, run_dir: Path) -> None:
        write_json(scores_path(run_dir, self.split), self.to_dict())

    @classmethod
    def load(cls, run_dir: Path | str, split: str = "test") -> Scores:
        """Raises RunMissingError where the run has not been scored, RunError for a file that cannot be read."""
        run_dir = Path(run_dir)
        path = scores_path(run_dir, split)
        if not run_dir.is_dir():
            raise RunMissingError(f"There is no run folder {run_dir}.", hint="Give the folder that `scanvit train` made.")
        if not path.is_file():
            again = "" if split == "test" else f" --split {split}"
            raise RunMissingError(f"{run_dir} has no {path.name}.", hint=f"Score it first: scanvit evaluate {run_dir}{again}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("it is of another format version")
            values["overall"] = {name: Estimate(**estimate) for name, estimate in values["overall"].items()}
            values["per_class"] = {
                name: ClassScores(
                    images=scores.pop("images"), patients=scores.pop("patients"), figures={figure: Estimate(**estimate) for figure, estimate in scores.items()}
                )
                for name, scores in values["per_class"].items()
            }
            return cls(**values)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path} cannot be used: {error}.", hint=f"Write it again: scanvit evaluate {run_dir} --split {split}") from error


def scores_path(run_dir: Path | str, split: str) -> Path:
    return Path(run_dir) / f"scores-{split}.json"


def compute_scores(predictions: Predictions, *, about: dict[str, Any], draws: int, seed: int) -> Scores:
    """``about``: the fields of Scores that predictions do not hold (run, experiment, split, audit, cost)."""
    computer = MetricComputer(predictions.targets, predictions.predicted, predictions.probs, predictions.losses)
    once = np.ones((len(predictions), 1))
    point = asdict(computer(once))
    confusion = computer.confusion(once)[0].astype(int)
    index, patients = patient_index(predictions.patient_ids)
    sampled = bootstrap(computer, index, patients, draws=draws, seed=seed) if patients > 1 and draws else {}
    counts = _PatientCounts(predictions, index, patients)
    per_class = {}
    for k, name in enumerate(predictions.class_names):
        figures = {}
        for figure in PER_CLASS:
            value, behind = float(point[figure][0, k]), counts.behind(figure, k)
            drawn = sampled[figure][:, k] if sampled else None
            figures[figure] = _estimate(value, drawn, behind, _WHY_UNDEFINED[figure], is_share=figure in _SHARES)
        per_class[name] = ClassScores(images=int(confusion[k].sum()), patients=counts.actual[k], figures=figures)
    absent = [name for name, scores in per_class.items() if not scores.images]
    overall = {name: _overall(name, float(point[name][0]), sampled.get(name), patients, absent) for name in OVERALL}
    return Scores(
        images=len(predictions),
        patients=patients,
        class_names=predictions.class_names,
        fingerprint=predictions.fingerprint,
        checkpoint=predictions.checkpoint,
        interval={"level": LEVEL, "method": METHOD, "draws": draws, "seed": seed},
        overall=overall,
        per_class=per_class,
        confusion_matrix=confusion.tolist(),
        **about,
    )


class _PatientCounts:
    """How many patients stand behind a figure: what decides whether resampling them says anything."""

    def __init__(self, predictions: Predictions, index: np.ndarray, patients: int) -> None:
        self._index, classes = index, range(len(predictions.class_names))
        self.actual = [self._distinct(predictions.targets == k) for k in classes]
        self._others = [self._distinct(predictions.targets != k) for k in classes]
        self._called = [self._distinct(predictions.predicted == k) for k in classes]

    def behind(self, figure: str, k: int) -> int:
        match figure:
            case "precision":
                return self._called[k]
            case "specificity":
                return self._others[k]
            case "auroc":
                return min(self.actual[k], self._others[k])
            case _:
                return self.actual[k]

    def _distinct(self, chosen: np.ndarray) -> int:
        return len(np.unique(self._index[chosen]))


def _estimate(value: float, draws: np.ndarray | None, patients: int, why_undefined: str, *, is_share: bool) -> Estimate:
    if np.isnan(value):
        return Estimate(value=None, note=why_undefined)
    if patients < 2:
        return Estimate(value=value, note=f"No interval: {_count_patients(patients)} cannot be resampled.")
    if draws is None:
        return Estimate(value=value, note="No interval: no draws were made.")
    interval = percentile_interval(draws)
    if interval is None:
        return Estimate(value=value, note=f"No interval: the figure is undefined in more than half of the resamples ({_count_patients(patients)}).")
    if interval[0] == interval[1]:
        return Estimate(value=value, note=_why_no_spread(patients, is_share=is_share))
    return Estimate(value=value, low=interval[0], high=interval[1])


def _why_no_spread(patients: int, *, is_share: bool) -> str:
    """Where all patients agree, every resample does: an interval of no width would be a false claim."""
    if not is_share:
        return f"No interval: every resample of the {_count_patients(patients)} gives the same figure."
    # The exact one-sided bound (Clopper and Pearson 1934) for no exception among n.
    possible = 1 - (1 - LEVEL) ** (1 / patients)
    return f"No interval: the {_count_patients(patients)} behind it all agree. Up to {possible:.1%} of exceptions are compatible with that ({LEVEL:.0%} bound)."


def _overall(name: str, value: float, draws: np.ndarray | None, patients: int, absent: Iterable[str]) -> Estimate:
    estimate = _estimate(value, draws, patients, "Undefined: the split holds one class only.", is_share=name in _SHARES)
    left_out = ", ".join(absent)
    if left_out and name in ("balanced_accuracy", "macro_auroc"):
        note = f"Left out, as the split has no image of it: {left_out}."
        return Estimate(value=estimate.value, low=estimate.low, high=estimate.high, note=f"{estimate.note} {note}" if estimate.note else note)
    return estimate


def _count_patients(patients: int) -> str:
    return "1 patient" if patients == 1 else f"{patients} patients"

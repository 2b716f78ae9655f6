"""Probes: how well something that should not matter predicts a label, by a small model that is judged on patients it has not seen."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

FOLDS = 5
_COMPONENTS = 50
_DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Balanced accuracy (mean sensitivity of the labels) of a cross-validated prediction, with its 95 % interval over patients."""

    value: float
    low: float
    high: float
    chance: float
    """One over the number of labels."""
    images: int
    recall: dict[str, float]
    """{label: share of its images that are found}."""
    youden: dict[str, float]
    """{label: sensitivity + specificity - 1}: 0 for a guess, 1 where it is given away."""

    @property
    def skill(self) -> float:
        """0 is chance, 1 is perfect."""
        return (self.value - self.chance) / (1 - self.chance)

    @property
    def is_above_chance(self) -> bool:
        return self.low > self.chance

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_probe(features: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, names: list[str], model: Literal["linear", "tree"] = "linear") -> Probe | None:
    """Predict ``labels`` (codes into ``names``) from ``features`` (n, F), five-fold, all images of a patient in one fold.

    linear: logistic regression on the 50 leading principal components. tree: a decision tree of depth 6. Labels weigh the same, however
    rare. A label with fewer than five patients is left out. None where fewer than two labels are left. The same input gives the same figure.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    known = [label for label in np.unique(labels) if len(np.unique(patients[labels == label])) >= FOLDS]
    kept = np.isin(labels, known)
    features, labels, patients = features[kept], np.searchsorted(known, labels[kept]), np.unique(patients[kept], return_inverse=True)[1]
    if len(known) < 2:
        return None
    features = _leading_components(features) if model == "linear" else features
    predicted = np.full(len(labels), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fold may lack a label; a fit that has not quite converged is good enough here
        for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, labels, patients):
            if len(np.unique(labels[train])) > 1:
                predicted[test] = _model(model).fit(features[train], labels[train]).predict(features[test])
    hits, totals = (np.zeros((patients.max() + 1, len(known))) for _ in range(2))
    np.add.at(hits, (patients, labels), predicted == labels)
    np.add.at(totals, (patients, labels), 1)
    low, high = _interval(hits, totals)
    recall = hits.sum(axis=0) / totals.sum(axis=0)
    false_alarm = np.array([(predicted[labels != label] == label).mean() for label in range(len(known))])
    shown = [str(names[label]) for label in known]
    value = round(float(recall.mean()), 3)
    return Probe(
        value=value,
        low=min(low, value),
        high=max(high, value),
        chance=1 / len(known),
        images=len(labels),
        recall=dict(zip(shown, recall.round(3).tolist(), strict=True)),
        youden=dict(zip(shown, (recall - false_alarm).round(3).tolist(), strict=True)),
    )


def _leading_components(features: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    centred = features - features.mean(axis=0)
    scale = centred.std()  # one for all: a pixel that hardly varies is noise, and is not to be blown up
    if not scale > 0:
        return np.zeros((len(features), 1), np.float32)
    components = PCA(min(_COMPONENTS, *features.shape), svd_solver="randomized", random_state=0).fit_transform(centred / scale)
    return components / max(float(components.std()), 1e-12)


def _model(kind: Literal["linear", "tree"]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier

    if kind == "tree":
        return DecisionTreeClassifier(max_depth=6, min_samples_leaf=3, class_weight="balanced", random_state=0)
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=200, tol=1e-3)


def _interval(hits: np.ndarray, totals: np.ndarray) -> tuple[float, float]:
    """95 % of the mean recall when patients are drawn with replacement (percentile bootstrap)."""
    random = np.random.default_rng(0)
    draws = np.stack([np.bincount(random.integers(len(hits), size=len(hits)), minlength=len(hits)) for _ in range(_DRAWS)]).astype(np.float64)
    drawn_hits, drawn_totals = draws @ hits, draws @ totals
    recall = np.divide(drawn_hits, drawn_totals, out=np.full_like(drawn_hits, np.nan), where=drawn_totals > 0)
    low, high = np.quantile(np.nanmean(recall, axis=1), [0.025, 0.975])
    return round(float(low), 3), round(float(high), 3)

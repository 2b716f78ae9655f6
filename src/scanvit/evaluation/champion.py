"""Is a run worse than the one that is in use? Judged pairwise on the test images of both, and by their intervals where these are few or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .common_images import common_predictions
from .estimates import Estimate
from .paired import compare_paired
from .predictions import Predictions
from .scores import Scores
from .subgroups import FEW_PATIENTS

FIGURES = {"accuracy": "accuracy", "macro_auroc": "macro AUROC"}
_DRAWS, _SEED = 2000, 0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    worse: bool
    """In one of the figures, by more than its interval: paired, or on the whole splits where few images are shared."""
    sentence: str
    """What was compared, on what, and what came out."""


def judge(challenger: Path, champion: Path, *, split: str = "test") -> Judgement:
    """Both folders hold scores-SPLIT.json and predictions-SPLIT.parquet. Raises RunMissingError or RunError where they do not."""
    new, old = Scores.load(challenger, split), Scores.load(champion, split)
    if new.class_names != old.class_names:
        return Judgement(worse=True, sentence=f"The champion knows other classes ({', '.join(old.class_names)}): the two cannot be compared.")
    tables = [Predictions.load(folder / f"predictions-{split}.parquet") for folder in (champion, challenger)]
    common = common_predictions(tables)
    figures = {name: (new.overall[name], old.overall[name]) for name in FIGURES}
    unjudged = _unjudged(figures, min(new.patients, old.patients))
    below = any(_is_below(*pair) for name, pair in figures.items() if name not in unjudged)
    shown = _list({name: f"{_show(pair[0])} against {_show(pair[1])}" for name, pair in figures.items()}, unjudged)
    if common is None:
        return Judgement(worse=below, sentence=f"They share no {split} images, so only their intervals were compared: {shown}.")
    paired = compare_paired(*common, draws=_DRAWS, seed=_SEED)
    differences = {name: paired.differences[name] for name in FIGURES}
    unjudged = _unjudged({name: (difference,) for name, difference in differences.items()}, paired.patients)
    listed = _list({name: _show(difference, signed=True) for name, difference in differences.items()}, unjudged)
    sentence = f"Paired on the {paired.images:,} {split} images of {paired.patients:,} patients that both were tested on: {listed}."
    worse = any(_is_negative(difference) for name, difference in differences.items() if name not in unjudged)
    if 2 * paired.images >= max(map(len, tables)) and paired.patients >= FEW_PATIENTS:
        return Judgement(worse=worse, sentence=sentence)
    # What is shared may be the few images that both name rightly.
    return Judgement(worse=worse or below, sentence=f"{sentence} These are few, so the intervals of the whole splits were compared as well: {shown}.")


def _unjudged(figures: Mapping[str, Sequence[Estimate]], patients: int) -> list[str]:
    """The figures that decide nothing, as they have no interval: a class of a single patient leaves macro AUROC without one, and the bare figure
    would be judged by its noise. Accuracy rests on all patients, and has none only where nothing varies. A single patient leaves nothing else."""
    without = [name for name, estimates in figures.items() if any(estimate.high is None for estimate in estimates)]
    return [name for name in without if name != "accuracy"] if patients > 1 else []


def _is_negative(difference: Estimate) -> bool:
    """Beyond the interval; where there is none, by the figure itself."""
    bound = difference.value if difference.high is None else difference.high
    return bound is not None and bound < 0


def _is_below(new: Estimate, old: Estimate) -> bool:
    high = new.value if new.high is None else new.high
    low = old.value if old.low is None else old.low
    return high is not None and low is not None and high < low


def _list(shown: Mapping[str, str], unjudged: Sequence[str]) -> str:
    return "; ".join(f"{FIGURES[name]} {text}{' (not judged: no interval)' if name in unjudged else ''}" for name, text in shown.items())


def _show(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.value is None:
        return "undefined"
    sign = "+" if signed else ""
    interval = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:{sign}.4f} to {estimate.high:{sign}.4f})"
    return f"{estimate.value:{sign}.4f}{interval}"

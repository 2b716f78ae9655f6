"""scores-SPLIT.json: every figure of one run on one split, each with its interval, or with a note that says why there is none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RunError, RunMissingError
from ..storage.atomic import write_json
from .estimates import Estimate
from .shift import Shift
from .subgroups import Axis

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from .trust import Trust

FORMAT = 3
"""3 added ``trust``, subgroups and shift. Files of format 2 are read without them; the report's parts that need it come with the next evaluation."""
_READABLE = (2, FORMAT)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    images: int
    patients: int
    figures: dict[str, Estimate]
    """By the names in ``metrics.PER_CLASS``; where a prevalence was given, also precision_at_prevalence and npv_at_prevalence."""
    prevalence: float | None = None
    """Of the class where the model is to be used, if the user gave it."""


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
    """By the names in ``metrics.OVERALL_NAMES``."""
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]]
    """Rows are targets, columns predictions."""
    audit: list[dict[str, Any]]
    """The gates of the pack's audit that did not pass when the run was trained."""
    cost: dict[str, Any] = field(default_factory=dict)
    """train_time_s, images_per_s, epochs, parameters, device, processes, energy_wh; None where the run does not tell."""
    notes: list[str] = field(default_factory=list)
    """What was left out, mapped, or could not be checked."""
    subgroups: list[Axis] = field(default_factory=list)
    shift: Shift | None = None
    """Of external data."""
    trust: Trust | None = None
    """What the answers can be trusted with. None in files of format 2."""

    def to_dict(self) -> dict[str, Any]:
        classes = {
            name: {"images": scores.images, "patients": scores.patients, "prevalence": scores.prevalence}
            | {figure: estimate.to_dict() for figure, estimate in scores.figures.items()}
            for name, scores in self.per_class.items()
        }
        shallow = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shallow |= {name: adapter.dump_python(getattr(self, name), mode="json") for name, adapter in _adapters().items()}
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
            if values.pop("format") not in _READABLE:
                raise ValueError("it is of another format version")
            values["overall"] = {name: Estimate(**estimate) for name, estimate in values["overall"].items()}
            values["per_class"] = {
                name: ClassScores(
                    images=scores.pop("images"),
                    patients=scores.pop("patients"),
                    prevalence=scores.pop("prevalence"),
                    figures={figure: Estimate(**estimate) for figure, estimate in scores.items()},
                )
                for name, scores in values["per_class"].items()
            }
            values |= {name: adapter.validate_python(values[name]) for name, adapter in _adapters().items() if name in values}
            return cls(**values)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path} cannot be used: {error}.", hint=f"Write it again: scanvit evaluate {run_dir} --split {split}") from error


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    """Of the fields that are trees of records. pydantic raises a ValueError for what is no such tree."""
    from pydantic import TypeAdapter

    from .trust import Trust

    return {"subgroups": TypeAdapter(list[Axis]), "shift": TypeAdapter(Shift | None), "trust": TypeAdapter(Trust | None)}


def scores_path(run_dir: Path | str, split: str) -> Path:
    return Path(run_dir) / f"scores-{split}.json"

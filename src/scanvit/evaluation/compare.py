"""Several runs side by side: accuracy with intervals, cost, learning curves, and what was set differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import RunError
from ..core.events import metric_history
from ..core.loading import experiment_to_dict, flatten, load_experiment
from ..pages import figures
from ..storage.atomic import write_text
from .common_images import score_common_images
from .page import render
from .scores import Scores

_NOT_COMPARED = {"name", "description", "data.pack"}


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    label: str
    """The run's folder name, longer where two runs share it."""
    scores: Scores
    settings: dict[str, Any]
    """By dotted key."""
    history: dict[str, list[tuple[int, int, float]]]
    strip: figures.Strip | None = None

    @property
    def strategy(self) -> str:
        """ "DDP, 2 processes, NVIDIA H100", as far as the run tells."""
        processes, device = self.cost("processes"), self.cost("device")
        ways = [] if processes is None else ["1 process"] if processes == 1 else ["DDP", f"{processes} processes"]
        return ", ".join([*ways, *([str(device)] if device else [])]) or "–"

    def cost(self, name: str) -> Any:
        return self.scores.cost.get(name)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    runs: list[ComparedRun]
    warnings: list[str]
    """Why the figures may not be comparable."""
    same_test: bool
    """All runs were scored on the same images."""
    common: str | None
    """Where the packs differ: on which images they were scored, and how many were left out."""
    differences: dict[str, list[Any]]
    """{setting: its value in each run} where they are not all the same."""


def compare(runs: Sequence[Path | str], out: Path | str, *, split: str = "test") -> Comparison:
    """Compare the scores of runs and write the page ``out``, whole or not at all.

    Runs on different packs, as after ``scanvit data extend``, are scored anew on the images that all of them were tested on.
    Raises RunMissingError for a run that was not scored on the split yet, RunError for fewer than two runs.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise RunError(f"There is nothing to compare {', '.join(map(str, paths)) or 'nothing'} with.", hint="Give two or more runs: scanvit compare RUN RUN")
    scores, labels = [Scores.load(path, split) for path in paths], _labels(paths)
    common = None
    if len({s.fingerprint for s in scores}) > 1 and all(s.class_names == scores[0].class_names for s in scores):
        common = score_common_images(paths, scores, split)
    if common:
        scores = common.scores
    axis = figures.percent_axis([bound for s in scores for bound in (s.overall["accuracy"].low, s.overall["accuracy"].value)])
    compared = [_read_run(path, label, s, axis) for path, label, s in zip(paths, labels, scores, strict=True)]
    keys = dict.fromkeys(key for run in compared for key in run.settings if key not in _NOT_COMPARED)
    values = {key: [run.settings.get(key, "–") for run in compared] for key in keys}
    comparison = Comparison(
        runs=compared,
        warnings=_warnings(compared, same_test=bool(common)),
        same_test=bool(common) or len({s.fingerprint for s in scores}) == 1,
        common=common.sentence(labels) if common else None,
        differences={key: row for key, row in values.items() if any(value != row[0] for value in row)},
    )
    write_text(out, _render(comparison, axis=axis, split=split))
    return comparison


def _read_run(path: Path, label: str, scores: Scores, axis: figures.Axis) -> ComparedRun:
    settings = flatten(experiment_to_dict(load_experiment(str(path / "experiment.yaml")))) if (path / "experiment.yaml").is_file() else {}
    accuracy = scores.overall["accuracy"]
    strip = axis.strip(accuracy.value, accuracy.low, accuracy.high)
    return ComparedRun(label=label, scores=scores, settings=settings, history=metric_history(path), strip=strip)


def _labels(paths: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _warnings(runs: Sequence[ComparedRun], *, same_test: bool) -> list[str]:
    first, warnings = runs[0].scores, []
    for run in runs[1:]:
        if run.scores.class_names != first.class_names:
            warnings.append(f"{run.label} and {runs[0].label} know different classes.")
        elif run.scores.fingerprint != first.fingerprint and not same_test:
            warnings.append(
                f"{run.label} was scored on another pack ({run.scores.fingerprint[:12]}) than {runs[0].label} ({first.fingerprint[:12]}): "
                "the figures are of different images."
            )
    findings: dict[str, list[str]] = {}
    for run in runs:
        if run.scores.audit:
            findings.setdefault(", ".join(str(gate.get("title") or gate.get("gate")) for gate in run.scores.audit), []).append(run.label)
    for titles, labels in findings.items():
        whose = "all runs" if len(labels) == len(runs) else ", ".join(labels)
        warnings.append(f"The audit of the data of {whose} has open findings: {titles}.")
    return warnings


def _render(comparison: Comparison, *, axis: figures.Axis, split: str) -> str:
    charts = [
        figures.line_chart(_curves(comparison.runs, "val_loss"), title="Validation loss"),
        figures.line_chart(_curves(comparison.runs, "val_accuracy"), title="Validation accuracy, %", percent=True),
    ]
    return render(
        "comparison.html.j2",
        rows=comparison.runs,
        warnings=comparison.warnings,
        same_test=comparison.same_test,
        common=comparison.common,
        differences=comparison.differences,
        axis=axis,
        split=split,
        level=round(100 * comparison.runs[0].scores.interval["level"]),
        charts=[chart for chart in charts if chart],
    )


def _curves(runs: Sequence[ComparedRun], metric: str) -> dict[str, list[figures.Point]]:
    return {run.label: [(float(epoch), value) for epoch, _, value in run.history.get(metric, [])] for run in runs}

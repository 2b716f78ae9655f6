"""Several runs side by side: figures with intervals, paired tests, curves, cost, seeds, and what was set differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, RunError
from ..core.events import metric_history
from ..core.loading import recorded_settings
from ..pages import figures
from ..storage.atomic import write_text
from .common_images import CommonImages, find_common_images, load_tables, score_common_images
from .estimates import FEWEST_PATIENTS
from .page import render
from .pairwise import Pair, Pairs, compare_pairs
from .predictions import Predictions
from .scores import Scores
from .seeds import GroupDifference, SeedGroup, group_differences, group_runs

_NOT_COMPARED = {"name", "description", "data.pack"}
_LABEL = "experiment"


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    label: str
    """The run's folder name, longer where two runs share it."""
    scores: Scores
    settings: dict[str, Any]
    """By dotted key; empty where nothing is known but predictions."""
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
    pairs: list[Pair] = field(default_factory=list)
    """Tests on the same images; none where the runs share none, or know different classes."""
    groups: list[SeedGroup] = field(default_factory=list)
    group_differences: list[GroupDifference] = field(default_factory=list)


def compare(runs: Sequence[Path | str], out: Path | str, *, split: str = "test", pairs: Pairs = "first", group: str | None = None) -> Comparison:
    """Compare the scores of runs and write the page ``out``, whole or not at all.

    Runs on different packs, as after ``scanvit data extend``, are scored anew on the images that all of them were tested on. ``group``: what
    is the same in the runs that differ by their seed alone: ``experiment``, their name, or a setting such as ``optimizer.lr``.

    Raises RunMissingError for a run that was not scored on the split yet, RunError for fewer than two runs, ConfigError for an unknown ``group``.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise RunError(f"There is nothing to compare {', '.join(map(str, paths)) or 'nothing'} with.", hint="Give two or more runs: scanvit compare RUN RUN")
    scores, labels = [Scores.load(path, split) for path in paths], _labels(paths)
    same_classes = all(s.class_names == scores[0].class_names for s in scores)
    tables = load_tables(paths, split) if same_classes else None
    shared = find_common_images(tables) if tables else None
    same_pack = len({s.fingerprint for s in scores}) == 1
    common = shared if shared and (not same_pack or any(shared.left_out)) else None
    if common:
        scores = score_common_images(common, scores)
    axis = figures.percent_axis([bound for s in scores for bound in (s.overall["accuracy"].low, s.overall["accuracy"].value)])
    compared = [_read_run(path, label, s, axis) for path, label, s in zip(paths, labels, scores, strict=True)]
    comparison = Comparison(
        runs=compared,
        warnings=_warnings(compared, same_test=bool(common), grouped=group),
        same_test=bool(common) or same_pack,
        common=common.sentence(labels, split) if common else None,
        differences=_differences(compared),
        pairs=compare_pairs(labels, shared.tables, pairs=pairs, **_resampling(scores)) if shared else [],
        **_by_seed(compared, shared, group),
    )
    write_text(out, _render(comparison, axis=axis, split=split, tables=shared.tables if shared else None))
    return comparison


def _resampling(scores: Sequence[Scores]) -> dict[str, int]:
    return {name: int(scores[0].interval[name]) for name in ("draws", "seed")}


def _by_seed(runs: Sequence[ComparedRun], shared: CommonImages | None, group: str | None) -> dict[str, Any]:
    if group is None:
        return {}
    names, labels, scores = _group_names(runs, group), [run.label for run in runs], [run.scores for run in runs]
    tables, seeds = shared.tables if shared else None, [run.settings.get("seed") for run in runs]
    return {"groups": group_runs(names, labels, seeds, scores, tables), "group_differences": group_differences(names, scores, tables)}


def _group_names(runs: Sequence[ComparedRun], group: str) -> list[str]:
    if group == _LABEL:
        return [run.scores.experiment or run.label for run in runs]
    known = dict.fromkeys(key for run in runs for key in run.settings)
    if group not in known:
        raise ConfigError(f"--group {group}: no run has such a setting.", hint="Give 'experiment', or a setting such as optimizer.lr.")
    return [f"{group}={run.settings[group]}" if group in run.settings else run.label for run in runs]


def _read_run(path: Path, label: str, scores: Scores, axis: figures.Axis) -> ComparedRun:
    settings = recorded_settings(path / "experiment.yaml") if (path / "experiment.yaml").is_file() else {}
    accuracy = scores.overall["accuracy"]
    strip = axis.strip(accuracy.value, accuracy.low, accuracy.high)
    return ComparedRun(label=label, scores=scores, settings=settings, history=metric_history(path), strip=strip)


def _labels(paths: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _differences(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in _NOT_COMPARED)
    values = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    known = [number for number, run in enumerate(runs) if run.settings]
    return {key: row for key, row in values.items() if any(row[number] != row[known[0]] for number in known)}


def _warnings(runs: Sequence[ComparedRun], *, same_test: bool, grouped: str | None) -> list[str]:
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
    return [*warnings, *(_group_warnings(runs, grouped) if grouped else ())]


def _group_warnings(runs: Sequence[ComparedRun], grouped: str) -> list[str]:
    """Runs of a group are to differ by their seed alone."""
    names, warnings = _group_names(runs, grouped), []
    for name in dict.fromkeys(names):
        members = [run for run, other in zip(runs, names, strict=True) if other == name]
        if others := [key for key in _differences(members) if key != "seed"]:
            warnings.append(f"The runs of {name} differ in more than their seed: {', '.join(others[:5])}.")
        seeds = [str(run.settings.get("seed")) for run in members if run.settings]
        if len(set(seeds)) < len(seeds):
            warnings.append(f"Two runs of {name} have the same seed: they are no independent repetitions.")
    return warnings


def _render(comparison: Comparison, *, axis: figures.Axis, split: str, tables: list[Predictions] | None) -> str:
    charts = [
        figures.line_chart(_curves(comparison.runs, "val_loss"), title="Validation loss"),
        figures.line_chart(_curves(comparison.runs, "val_accuracy"), title="Validation accuracy, %", percent=True),
    ]
    gains = [pair.paired.differences["accuracy"] for pair in comparison.pairs]
    gain_axis = figures.difference_axis([bound for gain in gains for bound in (gain.low, gain.value, gain.high)])
    return render(
        "comparison.html.j2",
        rows=comparison.runs,
        comparison=comparison,
        axis=axis,
        split=split,
        level=round(100 * comparison.runs[0].scores.interval["level"]),
        charts=[chart for chart in charts if chart],
        rocs=_roc_curves(comparison.runs, tables) if tables else [],
        gain_axis=gain_axis,
        gain_zero=gain_axis.place(0.0),
        gain_strips=[gain_axis.strip(gain.value, gain.low, gain.high) for gain in gains],
        fewest_patients=FEWEST_PATIENTS,
        has_energy=any(run.cost("energy_wh") is not None for run in comparison.runs),
    )


def _roc_curves(runs: Sequence[ComparedRun], tables: Sequence[Predictions]) -> list[dict[str, Any]]:
    """One entry a class that can be drawn: a curve a run."""
    found = []
    for k, name in enumerate(tables[0].class_names):
        paths = [figures.roc_path(table.targets == k, table.log_odds[:, k]) for table in tables]
        if all(paths):
            curves = [{"label": run.label, "path": path, "auroc": run.scores.per_class[name].figures["auroc"]} for run, path in zip(runs, paths, strict=True)]
            found.append({"name": name, "curves": curves})
    return found


def _curves(runs: Sequence[ComparedRun], metric: str) -> dict[str, list[figures.Point]]:
    return {run.label: [(float(epoch), value) for epoch, _, value in run.history.get(metric, [])] for run in runs}

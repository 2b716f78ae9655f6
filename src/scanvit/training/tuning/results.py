"""What a search leaves: ``tune.json``, and ``best.yaml`` for ``scanvit train``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...core.config import Experiment
from ...core.loading import experiment_to_yaml
from ...storage.atomic import write_json, write_text
from .space import apply
from .study import Study, TrialRow

RESULTS, BEST = "tune.json", "best.yaml"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    folder: Path
    metric: str
    rows: list[TrialRow]
    """In the order in which they were begun."""
    ranked: list[TrialRow]
    """Those that came to their end, best first."""

    @property
    def best(self) -> TrialRow | None:
        return self.ranked[0] if self.ranked else None

    @property
    def unfinished(self) -> int:
        return sum(row.state == "running" for row in self.rows)

    @property
    def files(self) -> list[str]:
        return [name for name in ("search.yaml", RESULTS, BEST) if (self.folder / name).is_file()]


def write_results(folder: Path, experiment: Experiment, study: Study) -> SearchResult:
    """Write tune.json, and best.yaml once a trial has come to its end. Each is whole at every moment."""
    result = SearchResult(folder=folder, metric=study.metric, rows=study.rows(), ranked=study.ranked())
    write_json(folder / RESULTS, _as_json(result, experiment, study))
    if best := result.best:
        write_text(folder / BEST, best_yaml(experiment, best, result))
    return result


def best_yaml(experiment: Experiment, best: TrialRow, result: SearchResult) -> str:
    """The best trial as an experiment file. The head says where it comes from."""
    found = apply(experiment, best.params)
    tried = sum(row.state == "complete" for row in result.rows)
    note = f"Found by scanvit tune: trial {best.number} of {len(result.rows)}, {result.metric} {best.value:.4f} on val"
    found = replace(found, name=f"{experiment.name[:57]}-tuned", description=note)
    head = [
        f"# {experiment.name}, tuned: {note}.",
        "#",
        "# command:   scanvit train best.yaml --pack PACK",
        f"# chosen:    the best of {tried} trials that came to their end ({len(result.rows)} were begun), one seed each: its figure on val flatters it",
        "# expected:  not known before it has been trained with other seeds and judged on test",
    ]
    return "\n".join(head) + "\n" + experiment_to_yaml(found)


def _as_json(result: SearchResult, experiment: Experiment, study: Study) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "pack": experiment.data.pack,
        "fingerprint": experiment.data.fingerprint,
        "metric": result.metric,
        "space": {key: str(values) for key, values in study.space.items()},
        "best": result.best.number if result.best else None,
        "trials": [asdict(row) for row in result.rows],
    }

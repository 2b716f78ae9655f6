"""``search``: try recipes within a budget, give up the bad ones early, and keep what was learnt in one folder.

SEARCH/experiment.yaml   what every trial begins with          SEARCH/study.journal    what was tried (Optuna's)
SEARCH/search.yaml       the space, metric, pruner and seed    SEARCH/trials/0000/     a run folder each
SEARCH/tune.json         the results                           SEARCH/best.yaml        the best trial as an experiment
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml

from ...core.config import Experiment
from ...core.errors import RunExistsError, TrialsFailedError
from ...core.events import EventLog
from ...core.loading import experiment_to_dict, experiment_to_yaml, parse_yaml, read_text
from ...data.pack import Pack
from ...storage.atomic import remove_leftovers, write_text
from ...storage.mlflow_client import default_tracking_uri
from ..run_folder import SETTINGS, bind, locked, refuse_other_settings
from ..shipping import ship_now
from ..tracking_state import TrackingState, bytes_behind, ensure_run_key
from .results import SearchResult, write_results
from .space import Space, apply, check_space
from .study import Metric, Pruner, Study, TrialRow
from .trials import Figures, TrialProcess

log = logging.getLogger(__name__)

SEARCH = "search.yaml"
_POLL_S = 0.2
_HOPELESS = 3
"""So many first trials that all failed end the search: the next ones would fail as well."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may not change while a search goes on."""

    metric: Metric = "val_loss"
    pruner: Pruner = "median"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    trials: int = 20
    """In all, those of an earlier try in the same folder counted in, whatever became of them."""
    time_s: float = math.inf
    """From now. Trials under way are then stopped after a checkpoint, and the same command goes on with them."""
    jobs: int = 1
    """Trials at a time."""


class Watcher(Protocol):
    """Hears how the search goes."""

    def begun(self, number: int, params: dict[str, object], *, again: bool) -> None: ...
    def epoch(self, number: int, epoch: int, value: float) -> None: ...
    def ended(self, row: TrialRow, done: int) -> None: ...


def search(experiment: Experiment, pack: Pack, folder: Path, *, space: Space, settings: Settings, budget: Budget, watcher: Watcher) -> SearchResult:
    """Begin a search in ``folder``, or go on with the one that is there. The validation split alone is looked at.

    Killed anywhere and started again, it takes up the trials that were under way from their checkpoints; none is lost or counted twice.

    Raises ConfigError for a space that the experiment cannot take, RunExistsError for a folder with another search, RunError where another
    process is at work in it, TrialsFailedError where no trial came to a figure, what no recipe is to blame for (a pack, a disk or a tracking that
    cannot be used) from whichever trial meets it first, and KeyboardInterrupt.
    """
    experiment = bind(experiment, pack)
    check_space(space, experiment)
    with locked(folder):
        open_search(folder, experiment, space, settings)
        pack.verify(("train", "val"))
        study = Study(folder, space, **asdict(settings), max_epochs=experiment.trainer.max_epochs)
        run = _Search(experiment, pack, folder, study, settings, watcher)
        with run.recorded():
            run.run(budget)
        return run.result


class _Search:
    def __init__(self, experiment: Experiment, pack: Pack, folder: Path, study: Study, settings: Settings, watcher: Watcher) -> None:
        self.experiment, self.pack, self.folder, self.study, self.watcher = experiment, pack, folder, study, watcher
        self.metric: Metric = settings.metric
        self.waiting = study.unfinished()
        self.running: list[TrialProcess] = []
        if experiment.tracking.mlflow:
            ensure_run_key(folder)

    def run(self, budget: Budget) -> None:
        deadline = time.monotonic() + budget.time_s
        try:
            while time.monotonic() < deadline:
                self._fill(budget)
                if not self.running:
                    return
                time.sleep(_POLL_S)
                for trial in list(self.running):
                    self._look_at(trial)
        finally:
            self._stop_all()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """The search as a run of its own: its events, their copy in MLflow, and the results, however it ends."""
        events = EventLog(self.folder)
        if len(self.study):
            events.write("resume", checkpoint="study.journal")
        else:
            events.write("start", experiment=experiment_to_dict(self.experiment), fingerprint=self.experiment.data.fingerprint, world_size=1)
            tags: dict[str, Any] = {"scanvit.search": self.metric, "mlflow.note.content": f"Search for a recipe, beginning with {self.experiment.name}"}
            events.write("tags", **tags)
        status = "preempted"
        try:
            yield
            status = "finished"
        finally:
            self.result = write_results(self.folder, self.experiment, self.study)
            if best := self.result.best:
                events.metrics({f"best_{self.metric}": float(best.value or 0), "trials": len(self.result.rows)}, epoch=0, step=len(self.result.rows))
            for path in self.result.files:
                events.write("artifact", path=path)
            events.write("end", status=status)
            self._ship_rest()
        rows = self.result.rows
        if rows and not self.result.best and all(row.state == "failed" for row in rows):
            raise TrialsFailedError(
                f"None of {len(rows)} trials came to a figure. The last one: {rows[-1].error}",
                hint=f"Mend what is wrong; then search in another folder than {self.folder}.",
            )

    def _ship_rest(self) -> None:
        """The search's own record, and what trials could not send while a server was slow or away. Stops where it still is: nothing is lost."""
        folders = [self.folder, *(self.folder / "trials" / f"{row.number:04d}" for row in self.result.rows if row.state != "running")]
        for folder in folders:
            behind = self.experiment.tracking.mlflow and bytes_behind(folder, TrackingState.load(folder))
            if behind and not ship_now(folder, self.experiment.tracking):
                return

    def _fill(self, budget: Budget) -> None:
        rows = self.study.rows()
        hopeless = len(rows) >= _HOPELESS and all(row.state == "failed" for row in rows)
        while len(self.running) < budget.jobs and (self.waiting or (len(self.study) < budget.trials and not hopeless)):
            again = bool(self.waiting)
            number = self.waiting.pop(0) if again else self.study.ask()
            params = self.study.params(number)
            trial = TrialProcess(number, self._experiment_of(number, params), pack=self.pack.path, run_dir=self.folder / "trials" / f"{number:04d}")
            self.watcher.begun(number, params, again=again)
            if self.experiment.tracking.mlflow:
                ensure_run_key(trial.run_dir, uri=default_tracking_uri(self.folder), parent=self.folder)
            self.running.append(trial)
            if not trial.finished:
                trial.start()

    def _experiment_of(self, number: int, params: dict[str, object]) -> Experiment:
        changed = apply(self.experiment, params)
        name = f"{changed.name[:50]}-trial-{number}"
        return replace(changed, name=name)

    def _look_at(self, trial: TrialProcess) -> None:
        ended = trial.ended  # before the last look at its events, not after
        give_up = False
        for epoch, value in trial.new_epochs(self.metric):
            self.watcher.epoch(trial.number, epoch, value)
            give_up = self.study.report(trial.number, epoch=epoch, value=value) or give_up
        if ended:
            self._close(trial)
        elif give_up and not trial.stopped:
            trial.stop()

    def _close(self, trial: TrialProcess) -> None:
        trial.wait()
        self.running.remove(trial)
        error = trial.error()
        figures = Figures.read(trial.run_dir, self.metric)
        end = partial(self.study.end, trial.number, best_epoch=figures.best_epoch, time_s=figures.time_s)
        if trial.finished:
            end("complete", value=figures.value)
        elif error and (kind := trial.fault_of_surroundings):  # it stays unfinished: the same command goes on with it
            raise kind(f"Trial {trial.number} cannot go on: {error}", hint=f"Mend that; then the same command goes on with the search in {self.folder}.")
        elif trial.stopped:
            end("pruned", value=figures.value)
        elif error is None:  # somebody else sent it a signal: it goes on from its checkpoint
            self.waiting.append(trial.number)
            return
        else:
            end("failed", error=f"Its {self.metric} is no number: training diverged." if trial.diverged else error)
        row = self.study.rows()[trial.number]
        self.watcher.ended(row, sum(row.state != "running" for row in self.study.rows()))
        write_results(self.folder, self.experiment, self.study)

    def _stop_all(self) -> None:
        """Each writes a checkpoint. To the study they are still under way."""
        for trial in self.running:
            trial.stop()
        for trial in self.running:
            trial.wait()


def open_search(folder: Path, experiment: Experiment, space: Space, settings: Settings) -> None:
    """Make the folder, or see that it holds the very same search. Raises RunExistsError."""
    wanted = {"space": {key: str(values) for key, values in space.items()}} | asdict(settings)
    path = folder / SEARCH
    if path.is_file():
        there = parse_yaml(read_text(path, error=RunExistsError), where=str(path), error=RunExistsError)
        for key, value in wanted.items():
            if there.get(key) != value:
                raise RunExistsError(
                    f"{folder} holds a search with {key} = {there.get(key)}, not {value}.", hint="Choose another --out, or go on with that search unchanged."
                )
    elif (folder / SETTINGS).is_file():
        raise RunExistsError(f"{folder} holds a run, not a search.", hint="Choose another --out.")
    else:
        remove_leftovers(path)
        if folder.is_dir() and any(found.name not in (".lock", SEARCH) for found in folder.iterdir()):
            raise RunExistsError(f"{folder} is not empty and holds no search.", hint="Choose another --out.")
        write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    if (folder / SETTINGS).is_file():
        refuse_other_settings(folder, experiment)
    else:
        write_text(folder / SETTINGS, experiment_to_yaml(experiment))

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scanvit.core.config import Experiment
from scanvit.core.errors import NoSpaceError, PackMissingError, RunExistsError, RunMissingError, ScanvitError, StorageError, TrackingError
from scanvit.core.events import EventLog
from scanvit.core.loading import load_experiment
from scanvit.data.pack import Pack
from scanvit.training.tuning.results import write_results
from scanvit.training.tuning.search import Settings, _Search, open_search
from scanvit.training.tuning.space import Range
from scanvit.training.tuning.study import Study, TrialRow
from scanvit.training.tuning.trials import Figures, TrialProcess

SPACE = {"optimizer.lr": Range.parse("", "loguniform(1e-4, 1e-2)")}


def test_a_folder_takes_one_search_with_its_settings(tmp_path: Path) -> None:
    open_search(tmp_path, Experiment(), SPACE, Settings())
    open_search(tmp_path, Experiment(), SPACE, Settings())
    with pytest.raises(RunExistsError, match="metric = val_loss, not val_accuracy"):
        open_search(tmp_path, Experiment(), SPACE, Settings(metric="val_accuracy"))
    with pytest.raises(RunExistsError, match="space = "):
        open_search(tmp_path, Experiment(), {"optimizer.lr": Range.parse("", "loguniform(1e-4, 1e-1)")}, Settings())
    with pytest.raises(RunExistsError, match="seed = 42, not 7"):
        open_search(tmp_path, Experiment(seed=7), SPACE, Settings())


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(RunExistsError, match="no search"):
        open_search(tmp_path, Experiment(), SPACE, Settings())
    (tmp_path / "experiment.yaml").write_text("seed: 1")
    with pytest.raises(RunExistsError, match="holds a run"):
        open_search(tmp_path, Experiment(), SPACE, Settings())


def test_a_folder_where_a_search_was_killed_at_its_very_start_takes_it(tmp_path: Path) -> None:
    (tmp_path / ".search.yaml.k1ll3d_8.tmp").write_text("metr")
    open_search(tmp_path, Experiment(), SPACE, Settings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml", "search.yaml"]


class Silent:
    def begun(self, number: int, params: dict[str, object], *, again: bool) -> None: ...
    def epoch(self, number: int, epoch: int, value: float) -> None: ...
    def ended(self, row: TrialRow, done: int) -> None: ...


def close_a_trial(folder: Path, pack: Path, *, code: int) -> list[str]:
    """States of the study's trials after one whose process ended with this exit code."""
    study = Study(folder, SPACE, metric="val_loss", pruner="none", seed=0, max_epochs=3)
    experiment = load_experiment("tiny", ["tracking.mlflow=false"])
    search = _Search(experiment, Pack.open(pack), folder, study, Settings(), Silent())
    trial = TrialProcess(study.ask(), experiment, pack=pack, run_dir=folder / "trials" / "0000")
    says = f"import json, sys; print(json.dumps('It is so.')); sys.exit({code})"
    trial._process = subprocess.Popen([sys.executable, "-c", says], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    search.running.append(trial)
    try:
        search._close(trial)
    finally:
        assert trial._process.stdout is not None
        trial._process.stdout.close()
        states = [row.state for row in study.rows()]
        (folder / "states").write_text(json.dumps(states))
    return states


@pytest.mark.parametrize("kind", [PackMissingError, NoSpaceError, StorageError, RunMissingError, TrackingError])
def test_what_no_recipe_is_to_blame_for_stops_the_search_and_leaves_the_trial_unfinished(tmp_path: Path, small_pack: Path, kind: type[ScanvitError]) -> None:
    with pytest.raises(ScanvitError, match="Trial 0 cannot go on: It is so") as caught:
        close_a_trial(tmp_path, small_pack, code=kind.exit_code)
    assert type(caught.value) is kind
    assert "goes on" in str(caught.value.hint)
    assert json.loads((tmp_path / "states").read_text()) == ["running"]


@pytest.mark.parametrize("code", [1, 10, 43, 44, 50])
def test_what_a_recipe_may_be_to_blame_for_fails_its_trial_alone(tmp_path: Path, small_pack: Path, code: int) -> None:
    assert close_a_trial(tmp_path, small_pack, code=code) == ["failed"]


def test_a_trial_is_judged_by_the_weights_that_it_keeps(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    for epoch, loss, accuracy in ((1, 0.6, 0.7), (2, 0.4, 0.8), (3, 0.5, 0.9)):
        events.metrics({"val_loss": loss, "val_accuracy": accuracy, "train_loss": 0.1, "train_time_s": 10.0 * epoch}, epoch=epoch, step=epoch)
    assert Figures.read(tmp_path, "val_accuracy") == Figures(epochs=3, best_epoch=2, value=0.8, time_s=30.0)
    assert Figures.read(tmp_path / "none", "val_loss") == Figures(epochs=0, best_epoch=None, value=None, time_s=0.0)


def test_new_epochs_are_told_once_and_half_a_line_later(tmp_path: Path) -> None:
    trial = TrialProcess(0, Experiment(), pack=tmp_path, run_dir=tmp_path)
    events = EventLog(tmp_path)
    assert trial.new_epochs("val_loss") == []
    events.metrics({"train_loss_step": 1.0}, epoch=0, step=1)
    events.metrics({"val_loss": 0.5, "train_loss": 0.4}, epoch=1, step=2)
    line = json.dumps({"time": 0, "kind": "metrics", "epoch": 2, "step": 4, "values": {"val_loss": 0.25, "train_loss": 0.1}})
    with open(events.path, "a") as file:
        file.write(line)
    assert trial.new_epochs("val_loss") == [(1, 0.5)]
    with open(events.path, "a") as file:
        file.write("\n")
    assert trial.new_epochs("val_loss") == [(2, 0.25)]


def test_the_results_hold_every_trial_and_the_best_one_can_be_trained(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, metric="val_loss", pruner="none", seed=0, max_epochs=3)
    for value in (0.5, 0.3):
        study.end(study.ask(), "complete", value=value, best_epoch=2, time_s=1.0)
    study.end(study.ask(), "failed", error="no memory")
    study.ask()
    base = load_experiment("tiny")
    result = write_results(tmp_path, base, study)
    told = json.loads((tmp_path / "tune.json").read_text())
    assert [trial["state"] for trial in told["trials"]] == ["complete", "complete", "failed", "running"]
    assert (told["best"], result.unfinished) == (1, 1)
    best = load_experiment(str(tmp_path / "best.yaml"))
    assert best.optimizer.lr == study.params(1)["optimizer.lr"]
    assert best.model == base.model
    assert best.name == "tiny-tuned"
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["optimizer"]["lr"] == best.optimizer.lr

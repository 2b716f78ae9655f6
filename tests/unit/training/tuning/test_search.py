from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scanvit.core.config import Experiment
from scanvit.core.errors import RunExistsError
from scanvit.core.events import EventLog
from scanvit.core.loading import load_experiment
from scanvit.training.tuning.results import write_results
from scanvit.training.tuning.search import Settings, open_search
from scanvit.training.tuning.space import Range
from scanvit.training.tuning.study import Study
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

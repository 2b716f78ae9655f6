"""A run from its first epoch to its last event: what it keeps, what it refuses, and what it says where nothing came of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scanvit.core.config import Experiment
from scanvit.core.errors import CheckpointError, ConfigError, DivergedError, PackMismatchError
from scanvit.core.events import read_events
from scanvit.core.loading import load_experiment
from scanvit.core.runtime import World
from scanvit.data.pack import Pack
from scanvit.training.fit import _build_trainer, _train_counts, fit
from scanvit.training.launch import launch
from scanvit.training.module import ClassificationModule
from scanvit.training.progress import Progress
from scanvit.training.recorder import RunRecorder
from scanvit.training.run_folder import bind, load_run, open_run
from scanvit.training.world import Council

SETTINGS = (
    *("model.stem_widths=[8,8]", "model.depth=1", "model.dim=8", "model.dim_head=8", "trainer.max_epochs=1", "trainer.per_device_batch_size=16"),
    *("trainer.accelerator=cpu", "trainer.threads=1", "trainer.precision=32-true", "tracking.mlflow=false"),
)


@pytest.fixture
def pack(small_pack: Path) -> Pack:
    return Pack.open(small_pack)


@pytest.fixture
def experiment(pack: Pack) -> Experiment:
    return bind(load_experiment("tiny", SETTINGS), pack)


@pytest.fixture
def val_losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """val_loss by epoch, in the place of the networks' own."""
    losses: dict[int, float] = {}
    original = ClassificationModule.on_validation_epoch_end

    def say(module: ClassificationModule) -> None:
        original(module)
        module.epoch_metrics["val_loss"] = losses[module.position.epoch]

    monkeypatch.setattr(ClassificationModule, "on_validation_epoch_end", say)
    return losses


def of_epochs(experiment: Experiment, epochs: int) -> Experiment:
    return replace(experiment, trainer=replace(experiment.trainer, max_epochs=epochs))


def kept(path: Path) -> int:
    """The epoch of a ``checkpoint.pth``."""
    return int(torch.load(path, weights_only=True)["metrics"]["epoch"])


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"data.fingerprint": "f" * 64}, PackMismatchError, "but process 1 on ffffffffffff"),
        ({"optimizer.lr": 0.5}, ConfigError, r"Process 0 trains with optimizer.lr = [\d.]+, but process 1 with 0.5"),
        ({"model.depth": 7}, ConfigError, "Process 0 trains with model.depth = 1, but process 1 with 7"),
        ({"data.pack": "/elsewhere", "trainer.threads": 64}, None, ""),
    ],
    ids=["another pack", "another learning rate", "another network", "another place"],
)
def test_machines_with_other_settings_are_refused(
    experiment: Experiment, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], error: type[Exception] | None, says: str
) -> None:
    monkeypatch.setattr(Council, "gather", lambda _, value: [value, value | changed if isinstance(value, dict) else value])
    if error is None:
        fit(experiment, pack, tmp_path)
        return
    with pytest.raises(error, match=says):
        fit(experiment, pack, tmp_path)
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_best_epoch_that_was_deleted_is_not_replaced_by_a_worse_one(
    experiment: Experiment, pack: Pack, tmp_path: Path, val_losses: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    val_losses |= {1: 0.3, 2: 0.9, 3: 0.2}
    fit(experiment, pack, run)
    (run / "checkpoints" / "best.ckpt").unlink()
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "checkpoint.pth").unlink()

    assert fit(of_epochs(experiment, 2), pack, run).best_epoch == 1
    assert kept(run / "checkpoint.pth") == 1
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert "checkpoint.pth is missing" not in caplog.text
    fit(of_epochs(experiment, 3), pack, run)
    assert kept(run / "checkpoint.pth") == kept_step(run / "checkpoints" / "best.ckpt") == 3

    for _ in range(2):  # the second time there is no epoch left
        with pytest.raises(CheckpointError, match=r"checkpoint.pth, the weights of the best epoch \(1\), was deleted") as caught:
            fit(of_epochs(experiment, 2), pack, copy)
        assert str(copy) in str(caught.value.hint)
    assert "checkpoint.pth is missing" in caplog.text
    shutil.copy(run / "checkpoint.pth", copy / "checkpoint.pth")
    fit(of_epochs(experiment, 2), pack, copy)
    assert list(read_events(copy))[-1]["values"]["status"] == "finished"


def kept_step(path: Path) -> int:
    """The epochs that a resumable checkpoint has behind it."""
    return int(torch.load(path, weights_only=True)["position"]["epoch"])


def test_of_epochs_without_a_number_the_first_is_kept_until_there_is_one(
    experiment: Experiment, pack: Pack, tmp_path: Path, val_losses: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    val_losses |= {1: float("nan"), 2: float("nan"), 3: 0.5}
    with pytest.raises(DivergedError, match="Training diverged: val_loss was never a number") as caught:
        fit(of_epochs(experiment, 2), pack, tmp_path, show_progress=True)
    assert "optimizer.lr" in str(caught.value.hint)
    assert "best so far" not in capsys.readouterr().out
    assert kept(tmp_path / "checkpoint.pth") == 1
    end = list(read_events(tmp_path))[-1]
    assert (end["kind"], end["values"]["status"]) == ("end", "failed")
    assert "diverged" in end["values"]["reason"]
    assert fit(of_epochs(experiment, 3), pack, tmp_path).best_epoch == 3
    assert kept(tmp_path / "checkpoint.pth") == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(experiment: Experiment, pack: Pack, tmp_path: Path) -> None:
    fit(experiment, pack, tmp_path)
    weights = (tmp_path / "checkpoint.pth").read_bytes()
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        if path.name != "best.ckpt":
            path.unlink()  # it may be another name of best.ckpt
            path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"Every checkpoint of the run in .* is damaged") as caught:
        fit(experiment, pack, tmp_path)
    assert (tmp_path / "checkpoint.pth").read_bytes() == weights
    assert "copy best.ckpt" in str(caught.value.hint)
    shutil.copy(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    assert fit(of_epochs(experiment, 2), pack, tmp_path).best_epoch >= 1


def test_a_launcher_of_one_process_a_machine_needs_to_say_nothing_of_the_machine(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "", "LOCAL_WORLD_SIZE": ""}.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    trainer = _build_trainer(experiment, RunRecorder(tmp_path, events=None, progress=Progress(show=False), audit=[]), tmp_path, None)
    assert (trainer.global_rank, trainer.local_rank, trainer.world_size, trainer.num_nodes) == (1, 0, 2, 2)


def test_more_processes_than_images_to_validate_on_are_told(pack: Pack) -> None:
    images = len(pack.targets("val"))
    assert len(_train_counts(pack, World(world_size=images))) == len(pack.class_names)
    with pytest.raises(ConfigError, match=f"has {images} images in val for {images + 1} processes") as caught:
        _train_counts(pack, World(world_size=images + 1))
    assert f"at most {images} processes" in str(caught.value.hint)


def test_a_setting_that_proves_impossible_is_not_the_run_s(experiment: Experiment, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run(tmp_path, experiment)
    changed = replace(experiment, trainer=replace(experiment.trainer, devices=60, timeout_s=7.0))
    open_run(tmp_path, changed)
    with monkeypatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "60", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
            patch.setenv(name, value)
        with pytest.raises(ConfigError, match="for 60 processes"):
            fit(changed, pack, tmp_path)
    assert load_run(tmp_path) == experiment
    changed = replace(experiment, trainer=replace(experiment.trainer, timeout_s=7.0, precision="auto"))
    fit(changed, pack, tmp_path)
    assert load_run(tmp_path) == changed, "as it was asked, not as it was decided"


@pytest.mark.parametrize("is_launched", [False, True], ids=["our own processes", "a launcher's"])
def test_more_processes_than_images_are_refused_before_anything_is_started(
    experiment: Experiment, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_launched: bool
) -> None:
    monkeypatch.setattr("scanvit.training.launch.run_processes", lambda *_, **__: pytest.fail("started"))
    if is_launched:
        for name, value in {"RANK": "0", "WORLD_SIZE": "60", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
    else:
        experiment = replace(experiment, trainer=replace(experiment.trainer, devices=60))
    with pytest.raises(ConfigError, match="images in val for 60 processes"):
        launch(experiment, pack, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_killed_processes_left_half_written_is_removed(experiment: Experiment, pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    names = [f"checkpoints/.{name}.ckpt.a1b2c3_4.tmp" for name in ("next", "best", "last", "previous")]
    for name in (*names, ".checkpoint.pth.a1b2c3_4.tmp"):
        (tmp_path / name).write_bytes(bytes(100))
    fit(experiment, pack, tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))

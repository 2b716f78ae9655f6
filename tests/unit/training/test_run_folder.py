"""A run folder: its lock, with which settings its run may go on, and what is told when somebody takes the folder away."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scanvit.core.errors import RunExistsError, RunMissingError
from scanvit.core.loading import load_experiment
from scanvit.training.run_folder import SETTINGS, is_being_trained, load_run, locked, note_settings, open_run, refuse_other_settings


def _take_away(run: Path, *, then: type[BaseException], is_made_again: bool = False) -> None:
    with locked(run):
        shutil.rmtree(run)
        if is_made_again:  # by whoever else writes into it, such as a checkpoint
            (run / "checkpoints").mkdir(parents=True)
        raise then


@pytest.mark.parametrize("is_made_again", [False, True], ids=["gone", "made-again"])
def test_errors_in_a_folder_that_was_taken_away_are_one_sentence(tmp_path: Path, is_made_again: bool) -> None:
    with pytest.raises(RunMissingError, match=r"run was deleted or moved") as caught:
        _take_away(tmp_path / "run", then=FileNotFoundError, is_made_again=is_made_again)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _take_away(tmp_path / "run", then=KeyboardInterrupt)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "run"):
        (tmp_path / "run" / "events.jsonl").open("rb")


def test_a_run_goes_on_with_other_processes_and_tracking_but_with_no_other_recipe(tmp_path: Path) -> None:
    began = load_experiment("tiny", ["trainer.devices=2"])
    assert not open_run(tmp_path, began)
    elsewhere = ("trainer.devices=1", "trainer.num_nodes=2", "trainer.threads=1", "trainer.timeout_s=9", "trainer.checkpoint_every_s=1")
    watched = ("trainer.log_every_n_steps=1", "trainer.eval_batch_size=3", "tracking.mlflow=false", "tracking.experiment_name=x", "tracking.drain_timeout_s=1")
    changed = load_experiment("tiny", [*elsewhere, *watched])
    assert open_run(tmp_path, changed)
    assert load_run(tmp_path) == began, "it may prove impossible yet"
    note_settings(tmp_path, changed)
    assert load_run(tmp_path) == changed, "--resume, too, goes on so"
    moved = replace(changed, data=replace(changed.data, pack="/elsewhere"))
    assert open_run(tmp_path, moved)
    note_settings(tmp_path, moved)
    assert load_run(tmp_path) == changed, "the pack's place stays"
    for recipe in ("optimizer.lr=0.5", "trainer.per_device_batch_size=7", "trainer.precision=32-true", "trainer.max_epochs=9", "seed=1"):
        with pytest.raises(RunExistsError, match=recipe.partition("=")[0]):
            open_run(tmp_path, load_experiment("tiny", [recipe]))
    assert load_run(tmp_path) == changed
    with pytest.raises(RunExistsError, match=r"trainer\.eval_batch_size = 3, not auto"):  # a search goes on as it began
        refuse_other_settings(tmp_path, began)


@pytest.mark.parametrize("name", [SETTINGS, "tracking.json"])
def test_a_start_that_was_killed_is_no_obstacle(tmp_path: Path, name: str) -> None:
    leftover = tmp_path / f".{name}.x1y2z3_4.tmp"
    leftover.write_text("name: ti")
    assert not open_run(tmp_path, load_experiment("tiny"))
    assert not leftover.exists()


def test_who_may_only_read_sees_whether_a_run_is_trained_and_disturbs_nobody_who_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, *more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError("a read-only file system")
        return opened(path, flags, *more)

    with locked(tmp_path):
        monkeypatch.setattr(os, "open", read_only)
        assert is_being_trained(tmp_path)
    with (tmp_path / ".lock").open() as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        assert not is_being_trained(tmp_path)

"""Training through the command line: interrupted anywhere, it ends with the weights of the run that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.training_runs import arguments, assert_same, epochs, wait_for_step

from scanvit.training.run_folder import locked

STEPS_AN_EPOCH = 12  # 94 or 95 training images


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run"))
    return folder / "run"


def test_a_run_is_repeated_by_its_own_experiment_file(scanvit: Scanvit, undisturbed: Path) -> None:
    scanvit("train", undisturbed / "experiment.yaml", "--run-dir", scanvit.folder / "again")
    assert_same(scanvit.folder / "again", undisturbed)


def test_two_processes_train_together_and_resume_exactly(scanvit: Scanvit, small_pack: Path) -> None:
    whole, killed = scanvit.folder / "whole", scanvit.folder / "killed"
    settings = ("trainer.devices=2", "trainer.max_epochs=2", "trainer.checkpoint_every_s=0.001")
    scanvit(*arguments(small_pack, whole, *settings))
    command = arguments(small_pack, killed, *settings)
    for step in (3, 9):  # in the middle of both epochs, where the sums of both ranks are carried over
        process = scanvit.start(*command)
        wait_for_step(killed, step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    scanvit(*command)
    assert_same(killed, whole)


def test_a_run_folder_takes_one_run_and_one_process(scanvit: Scanvit, small_pack: Path, undisturbed: Path) -> None:
    assert "finished run" in scanvit(*arguments(small_pack, undisturbed), code=42)
    assert "seed = 42, not 1" in scanvit(*arguments(small_pack, undisturbed, "seed=1"), code=42)
    (scanvit.folder / "other").mkdir()
    (scanvit.folder / "other" / "thesis.doc").write_text("mine")
    assert "holds no run" in scanvit(*arguments(small_pack, scanvit.folder / "other"), code=42)
    with locked(scanvit.folder / "busy"):
        assert "another process" in scanvit(*arguments(small_pack, scanvit.folder / "busy"), code=40)
    assert not (scanvit.folder / "busy" / "experiment.yaml").exists()


def test_a_run_refuses_a_pack_that_changed(scanvit: Scanvit, small_pack: Path, undisturbed: Path) -> None:
    changed = scanvit.folder / "pack"
    shutil.copytree(small_pack, changed)
    settings = json.loads((changed / "dataset.json").read_text())
    settings["fingerprint"] = "0" * 64
    (changed / "dataset.json").write_text(json.dumps(settings))
    scanvit(*arguments(changed, scanvit.folder / "run"), code=33)
    experiment = (undisturbed / "experiment.yaml").read_text()
    (scanvit.folder / "experiment.yaml").write_text(experiment.replace("fingerprint: ", "fingerprint: f"))
    assert "fingerprint" in scanvit("train", scanvit.folder / "experiment.yaml", "--run-dir", scanvit.folder / "run", code=34)
    assert not (scanvit.folder / "run" / "experiment.yaml").exists()


@pytest.mark.parametrize("name", ["reference", "tiny", "modern"])
def test_every_shipped_experiment_trains_and_is_evaluated(scanvit: Scanvit, small_pack: Path, name: str) -> None:
    run_dir = scanvit.folder / "run"
    scanvit("train", name, "--pack", small_pack, "--run-dir", run_dir, "--set", "trainer.max_epochs=1", "--set", "tracking.mlflow=false")
    assert "report.html" in scanvit("evaluate", run_dir)
    scores = json.loads((run_dir / "scores-test.json").read_text())
    assert 0 <= scores["overall"]["accuracy"]["value"] <= 1
    assert epochs(run_dir)[1]["val_loss"] == pytest.approx(scores["checkpoint"]["val_loss"])

"""Training through the command line: interrupted anywhere, it ends with the weights of the run that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from tests.integration.conftest import Scanvit

from scanvit.core.events import read_events
from scanvit.training.run_folder import locked

# Everything random is on, so that a draw that is not a function of (seed, step, rank) would show.
SETTINGS = [
    *("model.stem_widths=[8,8]", "model.depth=2", "model.dim=16", "model.dim_head=8", "model.dropout=0.1", "model.drop_path=0.1"),
    *("augment.rotate_deg=10", "augment.noise=0.1", "augment.mixup=0.2", "augment.erase=0.3", "ema.decay=0.99"),
    *("trainer.max_epochs=3", "trainer.per_device_batch_size=8", "trainer.log_every_n_steps=1", "tracking.mlflow=false"),
]
STEPS_AN_EPOCH = 12  # 94 or 95 training images


def arguments(pack: Path, run_dir: Path, *settings: str) -> list[str | Path]:
    return ["train", "tiny", "--pack", pack, "--run-dir", run_dir, *(x for s in [*SETTINGS, *settings] for x in ("--set", s))]


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run"))
    return folder / "run"


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(event["step"] >= step for event in read_events(run_dir)):
            return
        time.sleep(0.002)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    best = torch.load(run_dir / "checkpoint.pth", weights_only=True)["state_dict"]
    return last | {f"best {name}": value for name, value in best.items()}


def epochs(run_dir: Path) -> dict[int, dict[str, float]]:
    """The metrics of each epoch that do not measure time."""
    found = {}
    for event in read_events(run_dir):
        if "val_loss" in event["values"]:
            found[event["epoch"]] = {k: v for k, v in event["values"].items() if not k.endswith("_s") and v is not None}
    return found


def assert_same(run_dir: Path, expected: Path) -> None:
    ours, theirs = weights(run_dir), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert epochs(run_dir).keys() == epochs(expected).keys()
    for epoch, metrics in epochs(expected).items():
        assert epochs(run_dir)[epoch] == pytest.approx(metrics, rel=1e-12), "sums over ranks may be added in another order"


@pytest.mark.parametrize("kills", [[1, 7], [STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1], [2 * STEPS_AN_EPOCH + 5]], ids=str)
def test_a_killed_run_ends_with_the_same_weights(scanvit: Scanvit, small_pack: Path, undisturbed: Path, kills: list[int]) -> None:
    run_dir = scanvit.folder / "run"
    command = arguments(small_pack, run_dir)
    for step in kills:
        process = scanvit.start(*command)
        wait_for_step(run_dir, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    scanvit(*command)
    assert_same(run_dir, undisturbed)


def test_sigterm_writes_a_checkpoint_and_has_its_own_exit_code(scanvit: Scanvit, small_pack: Path, undisturbed: Path) -> None:
    run_dir = scanvit.folder / "run"
    process = scanvit.start(*arguments(small_pack, run_dir))
    wait_for_step(run_dir, STEPS_AN_EPOCH + 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert f"scanvit train --resume {run_dir}" in err
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved >= STEPS_AN_EPOCH + 3
    assert list(read_events(run_dir))[-1]["values"]["status"] == "preempted"
    scanvit("train", "--resume", run_dir)
    assert_same(run_dir, undisturbed)
    assert "finished already" in scanvit("train", "--resume", run_dir)


def test_a_damaged_newest_checkpoint_is_passed_over(scanvit: Scanvit, small_pack: Path, undisturbed: Path) -> None:
    run_dir = scanvit.folder / "run"
    process = scanvit.start(*arguments(small_pack, run_dir))
    wait_for_step(run_dir, 2 * STEPS_AN_EPOCH + 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = run_dir / "checkpoints" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert "last.ckpt is damaged" in scanvit("train", "--resume", run_dir)
    assert_same(run_dir, undisturbed)


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


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_elsewhere(scanvit: Scanvit, small_disk: Path, small_pack: Path, undisturbed: Path) -> None:
    out = scanvit(*arguments(small_pack, small_disk / "run", "trainer.checkpoint_every_s=0.001"), code=61)
    assert "No space is left" in out
    assert not list((small_disk / "run").rglob("*.tmp"))
    moved = scanvit.folder / "moved"
    shutil.copytree(small_disk / "run", moved)
    scanvit("train", "--resume", moved)
    assert_same(moved, undisturbed)


@pytest.mark.parametrize("name", ["reference", "tiny", "modern"])
def test_every_shipped_experiment_trains_and_is_evaluated(scanvit: Scanvit, small_pack: Path, name: str) -> None:
    run_dir = scanvit.folder / "run"
    scanvit("train", name, "--pack", small_pack, "--run-dir", run_dir, "--set", "trainer.max_epochs=1", "--set", "tracking.mlflow=false")
    assert "report.html" in scanvit("evaluate", run_dir)
    scores = json.loads((run_dir / "scores-test.json").read_text())
    assert 0 <= scores["overall"]["accuracy"]["value"] <= 1
    assert epochs(run_dir)[1]["val_loss"] == pytest.approx(scores["checkpoint"]["val_loss"])

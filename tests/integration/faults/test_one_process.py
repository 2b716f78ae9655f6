"""A run in one process, broken on purpose: it ends with the weights of the run that was not."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import Disturbance
from tests.integration.training_runs import arguments, last_step, saved_step, wait_for_step

from scanvit.core.events import read_events

STEPS_AN_EPOCH = 12  # 94 or 95 training images
EVERY_STEP = "trainer.checkpoint_every_s=0.001"


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run"))
    return folder / "run"


def disturb_at(scanvit: MarkedScanvit, pack: Path, step: int, *settings: str, signum: int = signal.SIGKILL) -> Disturbance:
    """Start a run and send it a signal as soon as it tells of that step."""
    run_dir = scanvit.folder / "run"
    process = scanvit.start(*arguments(pack, run_dir, *settings))
    wait_for_step(run_dir, step, process)
    disturbance = Disturbance(scanvit, run_dir, process)
    process.send_signal(signum)
    return disturbance


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        pytest.param(1, (), marks=pytest.mark.fault("one process", "SIGKILL", "first step"), id="first step"),
        pytest.param(STEPS_AN_EPOCH, (), marks=pytest.mark.fault("one process", "SIGKILL", "end of an epoch"), id="end of an epoch"),
        pytest.param(STEPS_AN_EPOCH + 7, (EVERY_STEP,), marks=pytest.mark.fault("one process", "SIGKILL", "inside an epoch"), id="inside an epoch"),
    ],
)
def test_a_killed_run(scanvit: MarkedScanvit, small_pack: Path, undisturbed: Path, fault: Fault, step: int, settings: tuple[str, ...]) -> None:
    disturbance = disturb_at(scanvit, small_pack, step, *settings)
    disturbance.ended(code=-signal.SIGKILL)
    disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("one process", "SIGTERM", "inside an epoch")
def test_sigterm_writes_a_checkpoint_and_has_its_own_exit_code(scanvit: MarkedScanvit, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    disturbance = disturb_at(scanvit, small_pack, STEPS_AN_EPOCH + 3, signum=signal.SIGTERM)
    said = disturbance.ended(code=75)
    run_dir = disturbance.run_dir
    assert f"scanvit train --resume {run_dir}" in said
    assert saved_step(run_dir) == last_step(run_dir)
    assert list(read_events(run_dir))[-1]["values"]["status"] == "preempted"
    disturbance.resume(undisturbed)
    assert "finished already" in scanvit("train", "--resume", run_dir)
    disturbance.record(fault)


@pytest.mark.fault("one process", "newest checkpoint truncated", "after SIGKILL")
def test_a_damaged_newest_checkpoint_is_passed_over(scanvit: MarkedScanvit, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    disturbance = disturb_at(scanvit, small_pack, 2 * STEPS_AN_EPOCH + 1)
    disturbance.ended(code=-signal.SIGKILL)
    newest = disturbance.run_dir / "checkpoints" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert "last.ckpt is damaged" in disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("one process", "disk full", "while a checkpoint is written")
def test_a_full_disk_ends_in_a_sentence(scanvit: MarkedScanvit, small_disk: Path, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    run_dir = small_disk / "run"
    process = scanvit.start(*arguments(small_pack, run_dir, EVERY_STEP))
    wait_for_step(run_dir, 1, process)
    disturbance = Disturbance(scanvit, run_dir, process)
    assert "No space is left" in disturbance.ended(code=61)
    assert not list(run_dir.rglob("*.tmp"))
    moved = scanvit.folder / "moved"
    shutil.copytree(run_dir, moved)
    disturbance.resume(undisturbed, run_dir=moved)
    disturbance.record(fault)

"""A run in one process, broken on purpose: it ends with the weights of the run that was not."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import BrokenRun, Disturbance, lives, truncate
from tests.integration.training_runs import arguments, last_step, saved_step, wait_for_step

from scanvit.core.events import read_events

STEPS_AN_EPOCH = 12  # 94 or 95 training images
SIX_EPOCHS = "trainer.max_epochs=6"
EVERY_STEP = "trainer.checkpoint_every_s=0.001"


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", SIX_EPOCHS))
    return folder / "run"


@pytest.fixture(scope="module")
def broken(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenRun]:
    """A run that is killed and stopped several times, with checkpoints at its epochs' ends."""
    scanvit = MarkedScanvit(tmp_path_factory.mktemp("broken"))
    run = BrokenRun(scanvit, scanvit.folder / "run")

    def send(name: str, signum: signal.Signals, *, at_step: int, code: int) -> None:
        wait_for_step(run.run_dir, at_step, run.process)
        run.process.send_signal(signum)
        run.ended(name, code=code)

    run.take_up(*arguments(small_pack, run.run_dir, SIX_EPOCHS))
    send("first step", signal.SIGKILL, at_step=1, code=-signal.SIGKILL)
    run.take_up()
    send("end of an epoch", signal.SIGKILL, at_step=STEPS_AN_EPOCH, code=-signal.SIGKILL)
    run.take_up()
    send("SIGTERM", signal.SIGTERM, at_step=last_step(run.run_dir) + 3, code=75)
    assert saved_step(run.run_dir) == last_step(run.run_dir)
    assert list(read_events(run.run_dir))[-1]["values"]["status"] == "preempted"
    run.take_up()
    send("SIGINT", signal.SIGINT, at_step=last_step(run.run_dir) + 3, code=130)
    run.take_up()
    send("truncated", signal.SIGKILL, at_step=(last_step(run.run_dir) // STEPS_AN_EPOCH + 2) * STEPS_AN_EPOCH + 1, code=-signal.SIGKILL)
    truncate(run.run_dir / "checkpoints" / "last.ckpt")
    made, before = last_step(run.run_dir), saved_step(run.run_dir, name="previous.ckpt")
    run.take_up().went_on()
    assert lives(run.run_dir)[-1].lost_steps == made - before
    yield run
    scanvit.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("first step", marks=pytest.mark.fault("one process", "SIGKILL", "first step")),
        pytest.param("end of an epoch", marks=pytest.mark.fault("one process", "SIGKILL", "end of an epoch")),
    ],
)
def test_a_killed_run_goes_on_from_its_last_epoch(broken: BrokenRun, undisturbed: Path, fault: Fault, name: str) -> None:
    assert broken.record(name, fault, undisturbed) <= STEPS_AN_EPOCH + 1


@pytest.mark.fault("one process", "SIGKILL", "inside an epoch")
def test_a_killed_run_goes_on_inside_an_epoch(scanvit: MarkedScanvit, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    run = BrokenRun(scanvit, scanvit.folder / "run").take_up(*arguments(small_pack, scanvit.folder / "run", SIX_EPOCHS, EVERY_STEP))
    wait_for_step(run.run_dir, STEPS_AN_EPOCH + 7, run.process)
    run.process.kill()
    run.ended("killed", code=-signal.SIGKILL)
    run.take_up().went_on()
    assert run.record("killed", fault, undisturbed) <= 2, "a checkpoint is written beside the step that follows it"


@pytest.mark.fault("one process", "SIGTERM", "inside an epoch")
def test_sigterm_writes_a_checkpoint_and_has_its_own_exit_code(broken: BrokenRun, undisturbed: Path, fault: Fault) -> None:
    assert f"scanvit train --resume {broken.run_dir}" in broken.said("SIGTERM")
    assert broken.record("SIGTERM", fault, undisturbed) == 0
    assert "finished already" in broken.scanvit("train", "--resume", broken.run_dir)


@pytest.mark.fault("one process", "SIGINT (Ctrl-C)", "inside an epoch")
def test_an_interrupt_writes_a_checkpoint_and_says_how_to_go_on(broken: BrokenRun, undisturbed: Path, fault: Fault) -> None:
    assert f"Go on with: scanvit train --resume {broken.run_dir}" in broken.said("SIGINT")
    assert broken.record("SIGINT", fault, undisturbed) == 0


@pytest.mark.fault("one process", "newest checkpoint truncated", "after SIGKILL")
def test_a_damaged_newest_checkpoint_is_passed_over(broken: BrokenRun, undisturbed: Path, fault: Fault) -> None:
    assert "last.ckpt is damaged" in broken.said_after("truncated")
    assert broken.record("truncated", fault, undisturbed) > 0


@pytest.mark.fault("one process", "disk full", "while a checkpoint is written")
def test_a_full_disk_ends_in_a_sentence(scanvit: MarkedScanvit, small_disk: Path, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    run_dir = small_disk / "run"
    process = scanvit.start(*arguments(small_pack, run_dir, SIX_EPOCHS, EVERY_STEP))
    wait_for_step(run_dir, 1, process)
    disturbance = Disturbance(scanvit, run_dir, process)
    assert "No space is left" in disturbance.ended(code=61)
    assert not list(run_dir.rglob("*.tmp"))
    moved = scanvit.folder / "moved"
    shutil.copytree(run_dir, moved)
    disturbance.resume(undisturbed, run_dir=moved)
    disturbance.record(fault)

"""A run in one process, broken on purpose: it ends with the weights of the run that was not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import BrokenRun, lives, truncate
from tests.integration.training_runs import arguments, last_step, saved_step

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

    run.breaks("first step", "SIGKILL", *arguments(small_pack, run.run_dir, SIX_EPOCHS), rank=None, step=1, code=-signal.SIGKILL)
    run.breaks("end of an epoch", "SIGKILL", rank=None, at="validation", step=STEPS_AN_EPOCH, code=-signal.SIGKILL)
    run.breaks("SIGTERM", "SIGTERM", rank=None, code=75)
    assert saved_step(run.run_dir) == last_step(run.run_dir)
    assert list(read_events(run.run_dir))[-1]["values"]["status"] == "preempted"
    run.breaks("SIGINT", "SIGINT", rank=None, code=130)
    later = (last_step(run.run_dir) // STEPS_AN_EPOCH + 2) * STEPS_AN_EPOCH + 1
    run.breaks("truncated", "SIGKILL", rank=None, step=later, code=-signal.SIGKILL)
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
    run = BrokenRun(scanvit, scanvit.folder / "run")
    run.breaks("killed", "SIGKILL", *arguments(small_pack, run.run_dir, SIX_EPOCHS, EVERY_STEP), rank=None, step=STEPS_AN_EPOCH + 7, code=-signal.SIGKILL)
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
    run = BrokenRun(scanvit, small_disk / "run").take_up(*arguments(small_pack, small_disk / "run", SIX_EPOCHS, EVERY_STEP))
    run.ended("full", code=61)
    assert "No space is left" in run.said("full")
    assert not list(run.run_dir.rglob("*.tmp"))
    run.move(scanvit.folder / "moved").take_up().went_on()
    run.record("full", fault, undisturbed)

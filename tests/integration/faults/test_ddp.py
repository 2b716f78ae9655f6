"""Two processes by DDP, broken on purpose: the run ends with the weights of the run that was not, and leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import BrokenRun, Disturbance, flip_a_bit, inject, truncate
from tests.integration.training_runs import arguments, last_step, saved_step, wait_for_step

from scanvit.core.events import read_events

EPOCHS, STEPS_AN_EPOCH = 12, 6  # 94 or 95 training images, batches of 8 in two processes
TWO = (f"trainer.max_epochs={EPOCHS}", "trainer.devices=2", "trainer.eval_batch_size=2")
EVERY_STEP = "trainer.checkpoint_every_s=0.001"
NO_RESTART = ("--max-restarts", "0")


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", *TWO))
    return folder / "run"


def workers(scanvit: MarkedScanvit) -> list[psutil.Process]:
    """The training processes, by rank."""
    found = [process for process in scanvit.alive() if "scanvit.training.worker" in process.cmdline()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


RESTARTED = {
    # the table's fault and where: how, rank, at, step; in the order of the steps
    ("SIGKILL of rank 0", "first step"): ("SIGKILL", 0, "step", 0),
    ("SIGKILL of rank 0", "in validation"): ("SIGKILL", 0, "validation", STEPS_AN_EPOCH),
    ("SIGSEGV of rank 1", "inside an epoch"): ("SIGSEGV", 1, "step", STEPS_AN_EPOCH + 1),
    ("SIGKILL of rank 0", "at an epoch's end, before the checkpoint has its name"): ("SIGKILL", 0, "checkpoint", 2 * STEPS_AN_EPOCH),
    ("SIGKILL of rank 1", "at an epoch's end, while rank 0 writes the checkpoint"): ("SIGKILL", 1, "checkpoint", 3 * STEPS_AN_EPOCH),
    ("SIGKILL of rank 1", "in validation"): ("SIGKILL", 1, "validation", 4 * STEPS_AN_EPOCH),
    ("SIGKILL of rank 1", "inside an epoch"): ("SIGKILL", 1, "step", 5 * STEPS_AN_EPOCH + 3),
}


@pytest.fixture(scope="module")
def restarted(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenRun]:
    """A run that loses one process after the other and goes on by itself, from the checkpoints of its epochs."""
    scanvit = MarkedScanvit(tmp_path_factory.mktemp("restarted"))
    run = BrokenRun(scanvit, scanvit.folder / "run")
    environment, once = inject(scanvit.folder, *RESTARTED.values())
    run.take_up(*arguments(small_pack, run.run_dir, *TWO), "--max-restarts", str(len(RESTARTED)), **environment)
    run.went_on(*map(", ".join, RESTARTED), since=once)
    yield run
    scanvit.close()


@pytest.mark.parametrize("key", [pytest.param(key, marks=pytest.mark.fault("DDP", *key), id=", ".join(key)) for key in RESTARTED])
def test_a_lost_process_brings_all_back_from_the_newest_checkpoint(restarted: BrokenRun, undisturbed: Path, fault: Fault, key: tuple[str, str]) -> None:
    how, rank, moment, _ = RESTARTED[key]
    name, number = ", ".join(key), list(RESTARTED).index(key) + 1
    # A checkpoint is written beside the next steps, up to where the one after it is due.
    most = 2 * STEPS_AN_EPOCH - 1 if moment == "checkpoint" else STEPS_AN_EPOCH
    assert f"Process {rank} of 2 was ended by {how}" in restarted.said(name)
    assert f"({number} of at most {len(RESTARTED)} times)" in restarted.said(name)
    assert restarted.record(name, fault, undisturbed) <= most


@pytest.fixture(scope="module")
def taken_up(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenRun]:
    """A run whose command ends before its time, again and again, and which is taken up by hand from the checkpoint of the newest step."""
    scanvit = MarkedScanvit(tmp_path_factory.mktemp("taken-up"))
    run_dir = scanvit.folder / "run"
    run = BrokenRun(scanvit, run_dir)
    first = (*arguments(small_pack, run_dir, *TWO, EVERY_STEP), *NO_RESTART)

    run.take_up(*first).wait_for_new_step()
    workers(scanvit)[1].kill()
    run.ended("SIGKILL of rank 1, no restarts", code=43)

    run.take_up().wait_for_new_step()
    workers(scanvit)[1].terminate()
    _orderly(run, "SIGTERM to rank 1", code=75)
    run.take_up().wait_for_new_step()
    os.killpg(run.process.pid, signal.SIGTERM)
    _orderly(run, "SIGTERM to all processes", code=75)
    run.take_up().wait_for_new_step()
    run.process.terminate()
    _orderly(run, "SIGTERM to the launcher", code=75)
    run.take_up().wait_for_new_step()
    os.killpg(run.process.pid, signal.SIGINT)
    _orderly(run, "SIGINT (Ctrl-C) to all", code=130)
    run.take_up().wait_for_new_step()
    run.process.kill()
    _orderly(run, "SIGKILL of the launcher", code=-signal.SIGKILL)

    whole = (run_dir / "experiment.yaml").read_text()
    impatient = whole.replace("\n  timeout_s: 120.0\n", "\n  timeout_s: 15.0\n")
    assert impatient != whole
    for name, how, code, settings in (("SIGSTOP of rank 1, no restarts", "SIGSTOP", 44, impatient), ("exception on rank 1", "exception", 1, whole)):
        (run_dir / "experiment.yaml").write_text(settings)
        environment, once = inject(scanvit.folder, (how, 1, "step", last_step(run_dir) + 3))
        run.take_up("train", "--resume", run_dir, *NO_RESTART, **environment)
        run.process.wait(600)
        run.ended(name, code=code, at=once[0].stat().st_mtime)

    pack = scanvit.folder / "pack"
    shutil.copytree(small_pack, pack)
    flip_a_bit(pack / "train.npy")
    run.take_up("train", "--resume", run_dir, "--pack", pack)
    run.ended("a bit of train.npy flipped", code=33)

    newest = run_dir / "checkpoints" / "last.ckpt"
    for name, damage in (("newest checkpoint truncated", truncate), ("a bit of the newest checkpoint flipped", flip_a_bit)):
        run.take_up().wait_for_new_step()
        for process in scanvit.alive():
            process.kill()
        run.ended(name, code=-signal.SIGKILL)
        damage(newest)
    run.take_up().went_on()
    yield run
    scanvit.close()


def _orderly(run: BrokenRun, name: str, *, code: int) -> None:
    """The command wrote a checkpoint of its last step."""
    run.ended(name, code=code)
    assert saved_step(run.run_dir) == last_step(run.run_dir), name
    assert list(read_events(run.run_dir))[-1]["values"]["status"] == "preempted", name


SAID = {
    # what the command says that meets the fault; how many steps may be lost: a checkpoint is written beside the step that follows it
    "SIGKILL of rank 1, no restarts": ("Process 1 of 2 was ended by SIGKILL", 2),
    "SIGTERM to rank 1": ("scanvit train --resume", 0),
    "SIGTERM to all processes": ("scanvit train --resume", 0),
    "SIGTERM to the launcher": ("scanvit train --resume", 0),
    "SIGINT (Ctrl-C) to all": ("Interrupted", 0),
    "SIGKILL of the launcher": ("", 0),
    "SIGSTOP of rank 1, no restarts": ("Process 1 of 2 did not take part for longer than trainer.timeout_s", 2),
    "exception on rank 1": ("Process 1 of 2 failed: ValueError: an injected exception", 2),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.fault("DDP", name, "inside an epoch"), id=name) for name in SAID])
def test_a_command_that_ends_before_its_time_is_taken_up(taken_up: BrokenRun, undisturbed: Path, fault: Fault, name: str) -> None:
    says, lost_steps = SAID[name]
    assert says in taken_up.said(name)
    assert taken_up.record(name, fault, undisturbed) <= lost_steps


def test_an_exception_leaves_its_traceback(taken_up: BrokenRun) -> None:
    traceback = Path(taken_up.said("exception on rank 1").split("Its traceback is in ")[1].split(": please")[0])
    assert "in training_step" in traceback.read_text() or "wrapped" in traceback.read_text()
    traceback.unlink()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.fault("DDP", name, "after SIGKILL of all"), id=name)
        for name in ("newest checkpoint truncated", "a bit of the newest checkpoint flipped")
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(taken_up: BrokenRun, undisturbed: Path, fault: Fault, name: str) -> None:
    assert "last.ckpt is damaged" in taken_up.said_after(name)
    assert taken_up.record(name, fault, undisturbed) <= 3


@pytest.mark.fault("DDP", "SIGKILL of rank 2 of 3", "inside an epoch")
def test_three_processes_add_up_alike_before_and_after(scanvit: MarkedScanvit, small_pack: Path, tmp_path: Path, fault: Fault) -> None:
    """The sum of three numbers depends on their order. The network fills more than DDP's first bucket."""
    wider = ("model.dim=64", "model.mlp_dim=512", "model.stem_widths=[16,32,64]", "model.depth=4", "trainer.max_epochs=2")
    settings = (*wider, "trainer.devices=3", "trainer.eval_batch_size=1", EVERY_STEP)
    scanvit(*arguments(small_pack, tmp_path / "undisturbed", *settings))
    environment, once = inject(tmp_path, ("SIGKILL", 2, "step", 2))
    run = BrokenRun(scanvit, tmp_path / "run").take_up(*arguments(small_pack, tmp_path / "run", *settings), **environment)
    run.went_on("killed", since=once)
    run.record("killed", fault, tmp_path / "undisturbed")


@pytest.mark.fault("DDP", "disk full", "while a checkpoint is written")
def test_a_full_disk_ends_in_a_sentence(scanvit: MarkedScanvit, small_pack: Path, small_disk: Path, undisturbed: Path, tmp_path: Path, fault: Fault) -> None:
    run_dir = small_disk / "run"
    process = scanvit.start(*arguments(small_pack, run_dir, *TWO, EVERY_STEP))
    wait_for_step(run_dir, 1, process)
    disturbance = Disturbance(scanvit, run_dir, process)
    assert "No space is left" in disturbance.ended(code=61)
    assert not list(run_dir.rglob("*.tmp"))
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    disturbance.resume(undisturbed, run_dir=moved)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "a bit of train.npy flipped", "between two commands")
def test_a_pack_that_changed_under_a_run_is_refused(taken_up: BrokenRun, undisturbed: Path, fault: Fault) -> None:
    name = "a bit of train.npy flipped"
    assert "train.npy was changed" in taken_up.said(name)
    taken_up.record(name, fault, undisturbed)

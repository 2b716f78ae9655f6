"""Two processes by DDP, broken on purpose: the run ends with the weights of the run that was not, and leaves no process behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import BrokenRun, flip_a_bit, inject, truncate
from tests.integration.training_runs import arguments, last_step, saved_step

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

    run.breaks("SIGKILL of rank 1, no restarts", "SIGKILL", *first, rank=1, code=43)
    for name, how, code in (
        ("SIGTERM to rank 1", "SIGTERM", 75),
        ("SIGTERM to all processes", "SIGTERM to all", 75),
        ("SIGTERM to the launcher", "SIGTERM to parent", 75),
        ("SIGINT (Ctrl-C) to all", "SIGINT to all", 130),
        ("SIGKILL of the launcher", "SIGKILL to parent", -signal.SIGKILL),
    ):
        run.breaks(name, how, rank=1, code=code)
        assert saved_step(run_dir) == last_step(run_dir), "a checkpoint of its last step"
        assert list(read_events(run_dir))[-1]["values"]["status"] == "preempted", name

    whole = (run_dir / "experiment.yaml").read_text()
    impatient = whole.replace("\n  timeout_s: 120.0\n", "\n  timeout_s: 15.0\n")
    assert impatient != whole
    for name, how, code, settings in (("SIGSTOP of rank 1, no restarts", "SIGSTOP", 44, impatient), ("exception on rank 1", "exception", 1, whole)):
        (run_dir / "experiment.yaml").write_text(settings)
        run.breaks(name, how, rank=1, code=code)

    pack = scanvit.folder / "pack"
    shutil.copytree(small_pack, pack)
    flip_a_bit(pack / "train.npy")
    run.take_up("train", "--resume", run_dir, "--pack", pack)
    run.ended("a bit of train.npy flipped", code=33)

    newest = run_dir / "checkpoints" / "last.ckpt"
    for name, damage in (("newest checkpoint truncated", truncate), ("a bit of the newest checkpoint flipped", flip_a_bit)):
        run.breaks(name, "SIGKILL to all", rank=1, code=-signal.SIGKILL)
        damage(newest)
    run.take_up().went_on()
    yield run
    scanvit.close()


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
    run = BrokenRun(scanvit, small_disk / "run").take_up(*arguments(small_pack, small_disk / "run", *TWO, EVERY_STEP))
    run.ended("full", code=61)
    assert "No space is left" in run.said("full")
    assert not list(run.run_dir.rglob("*.tmp"))
    run.move(tmp_path / "moved").take_up().went_on()
    run.record("full", fault, undisturbed)


@pytest.mark.fault("DDP", "a bit of train.npy flipped", "between two commands")
def test_a_pack_that_changed_under_a_run_is_refused(taken_up: BrokenRun, undisturbed: Path, fault: Fault) -> None:
    name = "a bit of train.npy flipped"
    assert "train.npy was changed" in taken_up.said(name)
    taken_up.record(name, fault, undisturbed)

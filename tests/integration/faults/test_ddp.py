"""Two processes by DDP, broken on purpose: the run ends with the weights of the run that was not, and leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import Disturbance, inject
from tests.integration.training_runs import arguments, last_step, saved_step, wait_for_step

from scanvit.core.events import read_events

STEPS_AN_EPOCH = 6  # 94 or 95 training images, batches of 8 in two processes
TWO = ("trainer.devices=2", "trainer.eval_batch_size=2")
EVERY_STEP = "trainer.checkpoint_every_s=0.001"
NO_RESTART = ("--max-restarts", "0")


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", *TWO))
    return folder / "run"


@pytest.fixture(scope="module")
def killed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, all of whose processes were killed in the second epoch."""
    scanvit = MarkedScanvit(tmp_path_factory.mktemp("killed"))
    run_dir = scanvit.folder / "run"
    process = scanvit.start(*arguments(small_pack, run_dir, *TWO, EVERY_STEP))
    wait_for_step(run_dir, STEPS_AN_EPOCH + 2, process)
    scanvit.close()
    return run_dir


@pytest.fixture
def start(scanvit: MarkedScanvit, small_pack: Path) -> Callable[..., Disturbance]:
    """start(*settings, options=(), environment={}, run_dir=None): a run in two processes that is about to be disturbed."""

    def start(*settings: str, options: tuple[str, ...] = (), environment: dict[str, str] | None = None, run_dir: Path | None = None) -> Disturbance:
        run_dir = run_dir or scanvit.folder / "run"
        return Disturbance(scanvit, run_dir, scanvit.start(*arguments(small_pack, run_dir, *TWO, *settings), *options, **environment or {}))

    return start


def workers(scanvit: MarkedScanvit) -> list[psutil.Process]:
    """The training processes, by rank."""
    found = [process for process in scanvit.alive() if "scanvit.training.worker" in process.cmdline()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


RESTARTED = [
    # how, rank, at, step, settings, the table's words
    ("SIGKILL", 0, "step", 0, (), "first step"),
    ("SIGKILL", 1, "step", STEPS_AN_EPOCH + 3, (EVERY_STEP,), "inside an epoch"),
    ("SIGKILL", 0, "validation", STEPS_AN_EPOCH, (), "in validation"),
    ("SIGKILL", 1, "validation", 2 * STEPS_AN_EPOCH, (), "in validation"),
    ("SIGKILL", 0, "checkpoint", 2, (), "at an epoch's end, before the checkpoint has its name"),
    ("SIGKILL", 1, "checkpoint", 2 * STEPS_AN_EPOCH, (), "at an epoch's end, while rank 0 writes the checkpoint"),
    ("SIGSEGV", 1, "step", STEPS_AN_EPOCH + 1, (), "inside an epoch"),
]


@pytest.mark.parametrize(
    ("how", "rank", "at", "step", "settings"),
    [pytest.param(*case, marks=pytest.mark.fault("DDP", f"{case[0]} of rank {case[1]}", where), id=f"{where}, {case[1]}") for *case, where in RESTARTED],
)
def test_a_lost_process_brings_all_back_from_the_newest_checkpoint(
    start: Callable[..., Disturbance], tmp_path: Path, undisturbed: Path, fault: Fault, how: str, rank: int, at: str, step: int, settings: tuple[str, ...]
) -> None:
    environment, once = inject(tmp_path, rank=rank, at=at, step=step, how=how)
    disturbance = start(*settings, environment=environment)
    said = disturbance.went_on(undisturbed, since=once)
    assert f"Process {rank} of 2 was ended by {how}" in said
    assert "(1 of at most 3 times)" in said
    assert disturbance.figures["lost_steps"] <= (1 if settings else STEPS_AN_EPOCH)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "SIGKILL of rank 2 of 3", "inside an epoch")
def test_three_processes_add_up_alike_before_and_after(scanvit: MarkedScanvit, small_pack: Path, tmp_path: Path, fault: Fault) -> None:
    """The sum of three numbers depends on their order. The network fills more than DDP's first bucket."""
    wider = ("model.dim=64", "model.mlp_dim=512", "model.stem_widths=[16,32,64]", "model.depth=4", "trainer.max_epochs=2")
    settings = (*wider, "trainer.devices=3", "trainer.eval_batch_size=1", EVERY_STEP)
    scanvit(*arguments(small_pack, tmp_path / "undisturbed", *settings))
    environment, once = inject(tmp_path, rank=2, at="step", step=2, how="SIGKILL")
    run_dir = tmp_path / "run"
    disturbance = Disturbance(scanvit, run_dir, scanvit.start(*arguments(small_pack, run_dir, *settings), **environment))
    disturbance.went_on(tmp_path / "undisturbed", since=once)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "SIGKILL of rank 1, no restarts", "inside an epoch")
def test_without_restarts_a_lost_process_ends_the_run_with_its_own_code(start: Callable[..., Disturbance], undisturbed: Path, fault: Fault) -> None:
    disturbance = start(options=NO_RESTART)
    wait_for_step(disturbance.run_dir, STEPS_AN_EPOCH + 1, disturbance.process)
    disturbance = Disturbance(disturbance.scanvit, disturbance.run_dir, disturbance.process)
    workers(disturbance.scanvit)[1].kill()
    said = disturbance.ended(code=43)
    assert "Process 1 of 2 was ended by SIGKILL" in said
    assert f"scanvit train --resume {disturbance.run_dir}" in said
    disturbance.resume(undisturbed)
    disturbance.record(fault)


def _to_rank_1(disturbance: Disturbance) -> None:
    workers(disturbance.scanvit)[1].terminate()


def _to_the_group(disturbance: Disturbance) -> None:
    os.killpg(disturbance.process.pid, signal.SIGTERM)


def _to_the_launcher(disturbance: Disturbance) -> None:
    disturbance.process.terminate()


def _from_the_keyboard(disturbance: Disturbance) -> None:
    os.killpg(disturbance.process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("send", "code"),
    [
        pytest.param(_to_rank_1, 75, marks=pytest.mark.fault("DDP", "SIGTERM to rank 1", "inside an epoch"), id="rank 1"),
        pytest.param(_to_the_group, 75, marks=pytest.mark.fault("DDP", "SIGTERM to all processes", "inside an epoch"), id="all"),
        pytest.param(_to_the_launcher, 75, marks=pytest.mark.fault("DDP", "SIGTERM to the launcher", "inside an epoch"), id="launcher"),
        pytest.param(_from_the_keyboard, 130, marks=pytest.mark.fault("DDP", "SIGINT (Ctrl-C) to all", "inside an epoch"), id="keyboard"),
    ],
)
def test_a_signal_brings_a_checkpoint_at_the_next_step(
    start: Callable[..., Disturbance], undisturbed: Path, fault: Fault, send: Callable[[Disturbance], None], code: int
) -> None:
    disturbance = start()
    wait_for_step(disturbance.run_dir, STEPS_AN_EPOCH + 1, disturbance.process)
    disturbance = Disturbance(disturbance.scanvit, disturbance.run_dir, disturbance.process)
    send(disturbance)
    disturbance.ended(code=code)
    assert saved_step(disturbance.run_dir) == last_step(disturbance.run_dir)
    assert list(read_events(disturbance.run_dir))[-1]["values"]["status"] == "preempted"
    disturbance.resume(undisturbed)
    assert disturbance.figures["lost_steps"] == 0
    disturbance.record(fault)


@pytest.mark.fault("DDP", "SIGSTOP of rank 1, no restarts", "inside an epoch")
def test_a_stopped_process_is_noticed_and_named(start: Callable[..., Disturbance], tmp_path: Path, undisturbed: Path, fault: Fault) -> None:
    environment, once = inject(tmp_path, rank=1, at="step", step=STEPS_AN_EPOCH + 2, how="SIGSTOP")
    disturbance = start("trainer.timeout_s=15", EVERY_STEP, options=NO_RESTART, environment=environment)
    said = disturbance.ended(code=44)
    disturbance.figures["ended_s"] += disturbance.at - once.stat().st_mtime
    assert "Process 1 of 2 did not take part for longer than trainer.timeout_s" in said
    disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "SIGKILL of the launcher", "inside an epoch")
def test_processes_without_their_launcher_write_a_checkpoint_and_end(start: Callable[..., Disturbance], undisturbed: Path, fault: Fault) -> None:
    disturbance = start()
    wait_for_step(disturbance.run_dir, STEPS_AN_EPOCH + 1, disturbance.process)
    disturbance = Disturbance(disturbance.scanvit, disturbance.run_dir, disturbance.process)
    disturbance.process.kill()
    disturbance.ended(code=-signal.SIGKILL)
    assert saved_step(disturbance.run_dir) == last_step(disturbance.run_dir)
    disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "exception on rank 1", "inside an epoch")
def test_an_exception_ends_the_run_without_restarts_and_is_told(start: Callable[..., Disturbance], tmp_path: Path, undisturbed: Path, fault: Fault) -> None:
    environment, once = inject(tmp_path, rank=1, at="step", step=STEPS_AN_EPOCH + 1, how="exception")
    disturbance = start(environment=environment)
    said = disturbance.ended(code=1)
    disturbance.figures["ended_s"] += disturbance.at - once.stat().st_mtime
    assert "Process 1 of 2 failed: ValueError: an injected exception" in said
    traceback = Path(said.split("Its traceback is in ")[1].split(": please")[0])
    assert "in training_step" in traceback.read_text() or "wrapped" in traceback.read_text()
    traceback.unlink()
    disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "disk full", "while a checkpoint is written")
def test_a_full_disk_ends_in_a_sentence(start: Callable[..., Disturbance], small_disk: Path, undisturbed: Path, tmp_path: Path, fault: Fault) -> None:
    disturbance = start(EVERY_STEP, run_dir=small_disk / "run")
    wait_for_step(disturbance.run_dir, 1, disturbance.process)
    disturbance = Disturbance(disturbance.scanvit, disturbance.run_dir, disturbance.process)
    assert "No space is left" in disturbance.ended(code=61)
    assert not list(disturbance.run_dir.rglob("*.tmp"))
    moved = tmp_path / "moved"
    shutil.copytree(disturbance.run_dir, moved)
    disturbance.resume(undisturbed, run_dir=moved)
    disturbance.record(fault)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.unlink()  # the other names of these bytes keep theirs
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_truncate, marks=pytest.mark.fault("DDP", "newest checkpoint truncated", "after SIGKILL of all"), id="truncated"),
        pytest.param(_flip_a_bit, marks=pytest.mark.fault("DDP", "a bit of the newest checkpoint flipped", "after SIGKILL of all"), id="flipped bit"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(
    scanvit: MarkedScanvit, killed: Path, undisturbed: Path, fault: Fault, damage: Callable[[Path], None]
) -> None:
    run_dir = scanvit.folder / "run"
    shutil.copytree(killed, run_dir)
    damage(run_dir / "checkpoints" / "last.ckpt")
    disturbance = Disturbance(scanvit, run_dir, scanvit.start("--version"))
    disturbance.figures |= {"exit_code": -signal.SIGKILL, "ended_s": 0.0}
    assert "last.ckpt is damaged" in disturbance.resume(undisturbed)
    disturbance.record(fault)


@pytest.mark.fault("DDP", "a bit of train.npy flipped", "between two commands")
def test_a_pack_that_changed_under_a_run_is_refused(scanvit: MarkedScanvit, small_pack: Path, killed: Path, undisturbed: Path, fault: Fault) -> None:
    pack, run_dir = scanvit.folder / "pack", scanvit.folder / "run"
    shutil.copytree(small_pack, pack)
    shutil.copytree(killed, run_dir)
    _flip_a_bit(pack / "train.npy")
    disturbance = Disturbance(scanvit, run_dir, scanvit.start("train", "--resume", run_dir, "--pack", pack))
    assert "train.npy was changed" in disturbance.ended(code=33)
    disturbance.resume(undisturbed)  # on the pack as it was
    disturbance.record(fault)

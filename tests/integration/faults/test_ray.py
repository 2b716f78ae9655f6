"""A run on a Ray cluster that loses processes or files on purpose: it ends with the weights of the run that did not."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.cluster_harness import RayCluster
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import Disturbed, RayRun
from tests.integration.training_runs import arguments

from scanvit.data.prepare import prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
STEPS_AN_EPOCH = 6  # 94 or 95 training images, two workers of 8
EVERY_STEP = "trainer.checkpoint_every_s=0.001"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One machine with two CPUs."""
    with RayCluster(head_options={"num-cpus": 2}) as cluster:
        yield cluster
    assert not cluster.processes


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes without Ray: the engine makes no difference to the weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", "trainer.devices=2"))
    return folder / "run"


@pytest.fixture
def start(cluster: RayCluster, small_pack: Path, tmp_path: Path) -> Iterator[Callable[..., RayRun]]:
    """start(*options, settings=()) -> a running run of two workers, which saves at every step."""
    runs = []

    def start(*options: str | Path, settings: tuple[str, ...] = (), pack: Path = small_pack, **environment: str) -> RayRun:
        options = ("--num-workers", "2", "--storage", tmp_path / "storage", *options)
        runs.append(RayRun(cluster, pack, tmp_path / "run", *options, settings=(EVERY_STEP, *settings), **environment))
        return runs[-1].start()

    yield start
    for run in runs:
        run.close()


@pytest.mark.parametrize(
    ("rank", "step", "signum"),
    [
        pytest.param(1, 1, signal.SIGKILL, marks=pytest.mark.fault("Ray", "SIGKILL of rank 1", "first step"), id="rank 1, first step"),
        pytest.param(0, STEPS_AN_EPOCH + 3, signal.SIGKILL, marks=pytest.mark.fault("Ray", "SIGKILL of rank 0", "inside an epoch"), id="rank 0, inside"),
        pytest.param(1, 2 * STEPS_AN_EPOCH, signal.SIGKILL, marks=pytest.mark.fault("Ray", "SIGKILL of rank 1", "end of an epoch"), id="rank 1, end"),
        pytest.param(1, STEPS_AN_EPOCH + 2, signal.SIGTERM, marks=pytest.mark.fault("Ray", "SIGTERM of rank 1", "inside an epoch"), id="rank 1, SIGTERM"),
        pytest.param(1, STEPS_AN_EPOCH + 2, signal.SIGSTOP, marks=pytest.mark.fault("Ray", "SIGSTOP of rank 1", "inside an epoch"), id="rank 1, SIGSTOP"),
        pytest.param(0, STEPS_AN_EPOCH + 2, signal.SIGSTOP, marks=pytest.mark.fault("Ray", "SIGSTOP of rank 0", "inside an epoch"), id="rank 0, SIGSTOP"),
    ],
)
def test_a_worker_is_lost(start: Callable[..., RayRun], undisturbed: Path, fault: Fault, rank: int, step: int, signum: signal.Signals) -> None:
    run = start(settings=("trainer.timeout_s=20",))
    run.wait_for_step(step)
    os.kill(run.worker(rank).pid, signum)
    disturbed = Disturbed(run).recovered()
    said = run.wait()
    assert f"worker {rank} failed" in said or signum == signal.SIGSTOP
    disturbed.record(fault, undisturbed)


@pytest.mark.fault("Ray", "SIGSTOP of the only worker", "inside an epoch")
def test_a_worker_without_others_stalls(start: Callable[..., RayRun], small_pack: Path, tmp_path: Path, fault: Fault) -> None:
    Scanvit(tmp_path)(*arguments(small_pack, tmp_path / "alone"))
    run = start("--num-workers", "1", settings=("trainer.timeout_s=20",))
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    os.kill(run.worker(0).pid, signal.SIGSTOP)
    disturbed = Disturbed(run).recovered()
    run.wait()
    disturbed.record(fault, tmp_path / "alone")


@pytest.mark.fault("Ray", "SIGKILL of the driver", "inside an epoch")
def test_the_driver_is_lost(start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    run = start()
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    assert run.process is not None
    disturbed = Disturbed(run)
    run.process.kill()
    run.wait(code=-signal.SIGKILL)
    ended_s = time.monotonic() - disturbed.at
    disturbed.again()
    run.wait()
    disturbed.record(fault, undisturbed, exit_code=-signal.SIGKILL, ended_s=ended_s)


@pytest.mark.fault("Ray", "SIGTERM of the driver", "inside an epoch")
def test_the_driver_is_told_to_stop(start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    run = start(settings=("trainer.checkpoint_every_s=1000",))
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    assert run.process is not None
    disturbed = Disturbed(run)
    run.process.terminate()
    assert "scanvit ray train --resume" in run.wait(code=75)
    ended_s = time.monotonic() - disturbed.at
    disturbed.again()
    run.wait()
    disturbed.record(fault, undisturbed, exit_code=75, ended_s=ended_s)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("truncated", marks=pytest.mark.fault("Ray", "newest checkpoint truncated", "in the storage"), id="truncated"),
        pytest.param("flipped bit", marks=pytest.mark.fault("Ray", "newest checkpoint with a flipped bit", "in the storage"), id="flipped bit"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(start: Callable[..., RayRun], tmp_path: Path, undisturbed: Path, fault: Fault, damage: str) -> None:
    run = start()
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    assert run.process is not None
    disturbed = Disturbed(run)
    run.process.kill()
    run.wait(code=-signal.SIGKILL)
    ended_s = time.monotonic() - disturbed.at
    newest = max(tmp_path.glob("storage/run-*/checkpoint*/bundle.json"), key=lambda file: json.loads(file.read_bytes())["step"])
    file = newest.parent / "checkpoints" / "last.ckpt"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[-1000:]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    disturbed.again()
    step = json.loads(newest.read_bytes())["step"]
    said = run.wait()
    assert f"the checkpoint of step {step} in {newest.parent} is damaged: checkpoints/last.ckpt fails its checksum" in said
    assert disturbed.lost_steps() > disturbed.made - step, "it went on from the one before"
    disturbed.record(fault, undisturbed, exit_code=-signal.SIGKILL, ended_s=ended_s)


@pytest.mark.fault("Ray", "the pack changed", "under a run that loses a worker")
def test_another_pack_is_refused(start: Callable[..., RayRun], small_pack: Path, tmp_path: Path, undisturbed: Path, fault: Fault) -> None:
    pack, aside = tmp_path / "pack", tmp_path / "aside"
    shutil.copytree(small_pack, pack)
    run = start(pack=pack)
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    pack.rename(aside)
    other_pack(tmp_path / "images.npz", pack)
    disturbed = Disturbed(run)
    os.kill(run.worker(1).pid, signal.SIGKILL)
    assert "fingerprint" in run.wait(code=34)
    ended_s = time.monotonic() - disturbed.at
    shutil.rmtree(pack)
    aside.rename(pack)
    disturbed.again()
    run.wait()
    disturbed.record(fault, undisturbed, exit_code=34, ended_s=ended_s)


def other_pack(images: Path, pack: Path) -> None:
    generator = np.random.default_rng(1)
    np.savez(images, train_images=generator.integers(0, 256, (60, 16, 16)).astype(np.uint8), train_labels=np.arange(60)[:, None] % 3)
    prepare(images, pack, settings={"image_size_px": 16}, workers=1)

"""Runs on a Ray cluster that lose processes and files on purpose: they end with the weights of the run that lost nothing.

A start on a cluster takes long, so a run is broken several times; each fault has its test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.cluster_harness import RayCluster, wait_for
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import Disturbed, RayRun

from scanvit.cluster.bundle import LAST
from scanvit.data.prepare import prepare
from scanvit.storage.checksum import sha256_file

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One machine with two CPUs."""
    with RayCluster(head_options={"num-cpus": 2}) as cluster:
        yield cluster
    assert not cluster.processes


LOSSES = {
    "before the first checkpoint": (1, signal.SIGKILL, 1),
    "inside an epoch": (0, signal.SIGKILL, 60),
    "SIGTERM": (1, signal.SIGTERM, 100),
    "SIGSTOP": (1, signal.SIGSTOP, 140),
}


@pytest.fixture(scope="module")
def losses(cluster: RayCluster, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disturbed]]:
    """A run that loses one worker after the other and goes on by itself."""
    folder = tmp_path_factory.mktemp("workers")
    options = ("--num-workers", "2", "--storage", folder / "storage", "--max-failures", str(len(LOSSES)))
    run = RayRun(cluster, small_pack, folder / "workers", *options, settings=("trainer.checkpoint_every_s=1",)).start()
    found = {}
    for name, (rank, signum, step) in LOSSES.items():
        worker = run.worker(rank)  # before the step: the command tells of it half a second later
        run.wait_for_step(step)
        os.kill(worker.pid, signum)
        found[name] = Disturbed(run).recovered()
    run.wait()
    yield found
    run.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("before the first checkpoint", marks=pytest.mark.fault("Ray", "SIGKILL of rank 1", "before the first checkpoint")),
        pytest.param("inside an epoch", marks=pytest.mark.fault("Ray", "SIGKILL of rank 0", "inside an epoch")),
        pytest.param("SIGTERM", marks=pytest.mark.fault("Ray", "SIGTERM of rank 1", "inside an epoch")),
        pytest.param("SIGSTOP", marks=pytest.mark.fault("Ray", "SIGSTOP of rank 1", "inside an epoch")),
    ],
)
def test_a_worker_is_lost(losses: dict[str, Disturbed], long_run: Path, fault: Fault, name: str) -> None:
    assert "failed" in losses[name].said
    losses[name].record(fault, long_run)


@pytest.fixture(scope="module")
def ends(cluster: RayCluster, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disturbed]]:
    """A run whose command ends before its time, again and again, and is given again."""
    folder = tmp_path_factory.mktemp("driver")
    pack, aside = folder / "pack", folder / "aside"
    shutil.copytree(small_pack, pack)
    options = ("--num-workers", "2", "--storage", folder / "storage")
    run = RayRun(cluster, pack, folder / "driver", *options, settings=("trainer.checkpoint_every_s=0.5",)).start()
    found = {}

    run.wait_for_step(60)
    wait_for_two_checkpoints(folder / "storage")
    found["killed"] = Disturbed(run)
    run.kill(signal.SIGKILL)
    found["killed"].ended(code=-signal.SIGKILL)
    damage(folder / "storage", truncate=True)
    found["killed"].again()

    run.wait_for_step(found["killed"].made + 40)
    wait_for_two_checkpoints(folder / "storage")
    found["stopped"] = Disturbed(run)
    run.kill(signal.SIGTERM)
    found["stopped"].ended(code=75)
    damage(folder / "storage", truncate=False)
    found["stopped"].again()

    run.wait_for_step(found["stopped"].made + 40)
    pack.rename(aside)
    other_pack(folder / "images.npz", pack)
    found["another pack"] = Disturbed(run)
    os.kill(run.worker(1).pid, signal.SIGKILL)
    found["another pack"].ended(code=34)
    shutil.rmtree(pack)
    aside.rename(pack)
    found["another pack"].again()

    run.wait()
    yield found
    run.close()


def wait_for_two_checkpoints(storage: Path) -> None:
    """Whole ones: the newest is damaged next, and the run goes on from the one before."""

    def is_whole(file: Path) -> bool:
        try:
            return sha256_file(file.parent / LAST) == json.loads(file.read_bytes())["files"][LAST]["sha256"]
        except FileNotFoundError:  # a better one has taken its place
            return False

    wait_for(lambda: sum(map(is_whole, storage.glob("driver-*/checkpoint*/bundle.json"))) >= 2, "two whole checkpoints in the storage")


def damage(storage: Path, *, truncate: bool) -> None:
    """The newest checkpoint's."""
    newest = max(storage.glob("driver-*/checkpoint*/bundle.json"), key=lambda file: json.loads(file.read_bytes())["step"])
    file = newest.parent / LAST
    content = bytearray(file.read_bytes())
    if truncate:
        del content[-1000:]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_pack(images: Path, pack: Path) -> None:
    generator = np.random.default_rng(1)
    np.savez(images, train_images=generator.integers(0, 256, (60, 16, 16)).astype(np.uint8), train_labels=np.arange(60)[:, None] % 3)
    prepare(images, pack, settings={"image_size_px": 16}, workers=1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            "killed",
            "is damaged: checkpoints/last.ckpt fails its checksum; the one before it is used",
            marks=pytest.mark.fault("Ray", "SIGKILL of the driver", "then the newest checkpoint in the storage truncated"),
        ),
        pytest.param(
            "stopped",
            "is damaged: checkpoints/last.ckpt fails its checksum; the one before it is used",
            marks=pytest.mark.fault("Ray", "SIGTERM to the driver", "then a bit of the newest checkpoint flipped"),
        ),
        pytest.param("another pack", "fingerprint", marks=pytest.mark.fault("Ray", "the pack changed", "under a run that loses a worker")),
    ],
    ids=["killed", "stopped", "another pack"],
)
def test_the_command_ends_before_its_time(ends: dict[str, Disturbed], long_run: Path, fault: Fault, name: str, says: str) -> None:
    assert says in ends[name].said
    assert ends[name].taken_up > 0
    ends[name].record(fault, long_run)

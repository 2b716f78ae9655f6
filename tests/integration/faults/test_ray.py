"""A run on a Ray cluster, broken on purpose: it goes on by itself, or by the same command, and ends with the weights of the run that was not.

All clusters are real and, but for those in boxes, on this machine: a head without CPUs and nodes of one CPU each.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.cluster_harness import Node, RayCluster
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import Disturbed, RayRun
from tests.integration.training_runs import arguments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
STEPS_AN_EPOCH = 6  # 94 or 95 training images, two workers of 8
EVERY_STEP = "trainer.checkpoint_every_s=0.001"


class Cluster:
    """A head and two nodes; a node that a test has killed is replaced before the next test."""

    def __init__(self) -> None:
        self.ray = RayCluster()
        self.nodes: list[Node] = []

    def fill(self) -> Cluster:
        self.nodes = [node for node in self.nodes if node.processes]
        while len(self.nodes) < 2:
            self.nodes.append(self.ray.add_node(cpus=1))
        return self


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.ray.close()
    assert not cluster.ray.processes


@pytest.fixture
def cluster(own_cluster: Cluster) -> Cluster:
    return own_cluster.fill()


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes without Ray: the engine makes no difference to the weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", "trainer.devices=2"))
    return folder / "run"


@pytest.fixture
def start(cluster: Cluster, small_pack: Path, tmp_path: Path) -> Iterator[Callable[..., RayRun]]:
    """start(*options, settings=()) -> a running run of two workers, which saves at every step."""
    runs = []

    def start(*options: str | Path, settings: tuple[str, ...] = (), pack: Path = small_pack, **environment: str) -> RayRun:
        options = ("--num-workers", "2", "--storage", tmp_path / "storage", *options)
        runs.append(RayRun(cluster.ray, pack, tmp_path / "run", *options, settings=(EVERY_STEP, *settings), **environment))
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
    run = start(settings=("trainer.timeout_s=5",))
    run.wait_for_step(step)
    os.kill(run.worker(rank).pid, signum)
    disturbed = Disturbed(run).recovered()
    said = run.wait()
    assert f"worker {rank} failed" in said or signum == signal.SIGSTOP
    disturbed.record(fault, undisturbed)


@pytest.mark.fault("Ray", "SIGKILL of the driver", "inside an epoch")
def test_the_driver_is_lost(start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    run = start()
    run.wait_for_step(STEPS_AN_EPOCH + 2)
    assert run.process is not None
    disturbed = Disturbed(run)
    run.process.kill()
    run.wait(code=-signal.SIGKILL)
    ended_s = time.monotonic() - disturbed.at
    disturbed.at = time.monotonic()
    run.start()
    disturbed.recovered()
    run.wait()
    disturbed.record(fault, undisturbed, exit_code=-signal.SIGKILL, ended_s=ended_s)

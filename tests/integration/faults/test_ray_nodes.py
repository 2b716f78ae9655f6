"""A run on a Ray cluster that loses whole nodes on purpose, with and without others in their place. Each node is one of several on this machine."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.integration.cluster_harness import Node, RayCluster, wait_for
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import Disturbed, RayRun
from tests.integration.training_runs import arguments

from scanvit.core.events import read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
EPOCHS = 20
LONG = (f"trainer.max_epochs={EPOCHS}", "trainer.per_device_batch_size=2", "trainer.checkpoint_every_s=1")  # 24 steps an epoch


class Cluster:
    """A head without CPUs and two nodes of one CPU; a node that a test has killed is replaced before the next test."""

    def __init__(self) -> None:
        self.ray = RayCluster()
        self.nodes: list[Node] = []

    def fill(self) -> Cluster:
        self.nodes = [node for node in self.nodes if node.processes]
        while len(self.nodes) < 2:
            self.nodes.append(self.ray.add_node(cpus=1))
        return self

    def node_of(self, run: RayRun, rank: int) -> Node:
        return next(node for node in self.nodes if run.worker(rank).pid in {process.pid for process in node.processes})


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
    folder = tmp_path_factory.mktemp("undisturbed")
    Scanvit(folder)(*arguments(small_pack, folder / "run", *LONG, "trainer.devices=2"))
    return folder / "run"


@pytest.fixture
def start(cluster: Cluster, small_pack: Path, tmp_path: Path) -> Iterator[Callable[..., RayRun]]:
    """start(*options, settings=()) -> a running run of two workers."""
    runs = []

    def start(*options: str | Path, settings: tuple[str, ...] = (), **environment: str) -> RayRun:
        options = ("--num-workers", "2", "--storage", tmp_path / "storage", *options)
        runs.append(RayRun(cluster.ray, small_pack, tmp_path / "run", *options, settings=(*LONG, *settings), **environment))
        return runs[-1].start()

    yield start
    for run in runs:
        run.close()


@pytest.mark.fault("Ray", "a node killed, replaced later", "inside an epoch")
def test_a_node_is_lost_and_replaced(cluster: Cluster, start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    run = start(settings=("trainer.timeout_s=20",))
    run.wait_for_step(30)
    disturbed = Disturbed(run)
    cluster.node_of(run, 1).kill()
    run.wait_for_line("waiting for 2 workers")
    cluster.fill()
    disturbed.recovered()
    run.wait()
    disturbed.record(fault, undisturbed)


@pytest.mark.fault("Ray", "a node killed, not replaced", "inside an epoch")
def test_a_node_is_lost_for_good(cluster: Cluster, start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    run = start("--wait", "15", settings=("trainer.timeout_s=20",))
    run.wait_for_step(30)
    disturbed = Disturbed(run)
    cluster.node_of(run, 1).kill()
    assert "had no room for the workers in 15 s" in run.wait(code=82)
    ended_s = time.monotonic() - disturbed.at
    cluster.fill()
    disturbed.again()
    run.wait()
    disturbed.record(fault, undisturbed, exit_code=82, ended_s=ended_s)


def test_a_range_of_workers_goes_on_with_what_is_left_and_takes_new_nodes_in(cluster: Cluster, start: Callable[..., RayRun], tmp_path: Path) -> None:
    run = start("--min-workers", "1", "--resize-every", "3", settings=("trainer.timeout_s=20",))
    run.wait_for_step(30)
    before, made = len(run.workers), run.step
    cluster.node_of(run, 1).kill()
    run.wait_for_step(made + 1)
    assert [worker.rank for worker in run.workers[before:]] == [0], "one worker alone"
    cluster.fill()
    wait_for(lambda: {worker.rank for worker in run.workers[before + 1 :]} == {0, 1}, f"two workers again\n{run.said}", 600)
    run.wait()
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = [event["epoch"] for event in read_events(tmp_path / "run") if "val_loss" in event["values"]]
    assert epochs == list(range(1, EPOCHS + 1)), "each epoch once"
    assert (last["position"]["epoch"], last["position"]["images"]) == (EPOCHS, 0)
    assert 24 * EPOCHS < last["global_step"] < 48 * EPOCHS, "some epochs took the steps of two workers, some those of one"


@pytest.mark.fault("Ray", "a node drained (preemption)", "inside an epoch")
def test_a_node_is_taken_away_with_a_warning(cluster: Cluster, start: Callable[..., RayRun], undisturbed: Path, fault: Fault) -> None:
    spare = cluster.ray.add_node(cpus=1)
    cluster.nodes.append(spare)
    run = start("--max-failures", "0", settings=("trainer.checkpoint_every_s=1000",), RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    run.wait_for_step(30)
    leaving = cluster.node_of(run, 1)
    disturbed = Disturbed(run)
    warned_at = disturbed.made
    cluster.ray.drain(leaving, seconds=15)
    disturbed.made = run.wait_for_line("going on from the checkpoint of step")
    leaving.kill()
    disturbed.recovered()
    said = run.wait()
    taken_up = int(said.rsplit("going on from the checkpoint of step ", 1)[1].split()[0])
    assert taken_up >= warned_at, "a checkpoint was written after the warning"
    disturbed.record(fault, undisturbed)

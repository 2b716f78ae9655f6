"""Runs on a Ray cluster that loses whole nodes on purpose, with and without others in their place. The nodes are on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.integration.cluster_harness import Node, RayCluster, wait_for
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import EPOCHS, Disturbed, RayRun

from scanvit.core.events import read_events

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]


class Cluster:
    """A head without CPUs, and nodes of one CPU."""

    def __init__(self) -> None:
        self.ray = RayCluster()
        self.nodes: list[Node] = []

    def fill(self, count: int = 2) -> Cluster:
        """Put new nodes in the places of dead ones."""
        self.nodes = [node for node in self.nodes if node.processes]
        while len(self.nodes) < count:
            self.nodes.append(self.ray.add_node(cpus=1))
        return self

    def node_of(self, run: RayRun, rank: int) -> Node:
        return next(node for node in self.nodes if run.worker(rank).pid in {process.pid for process in node.processes})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.ray.close()
    assert not cluster.ray.processes


@pytest.fixture(scope="module")
def losses(cluster: Cluster, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disturbed]]:
    """A run that loses three nodes: for good, to be replaced, and with a warning."""
    folder = tmp_path_factory.mktemp("nodes")
    run = RayRun(cluster.ray, small_pack, folder / "nodes", "--num-workers", "2", "--storage", folder / "storage", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    found = {}

    cluster.fill()
    run.start("--wait", "15").wait_for_step(60)
    found["for good"] = Disturbed(run)
    cluster.node_of(run, 1).kill()
    found["for good"].ended(code=82)
    cluster.fill()
    found["for good"].again()

    run.wait_for_step(found["for good"].made + 30)
    found["replaced"] = Disturbed(run)
    cluster.node_of(run, 1).kill()
    run.wait_for_line("waiting for 2 workers")
    cluster.fill(3)
    found["replaced"].recovered()

    run.wait_for_step(found["replaced"].made + 30)
    leaving = cluster.node_of(run, 1)
    found["warned"] = warned = Disturbed(run)
    cluster.ray.drain(leaving, seconds=5)
    warned.made = run.wait_for_line("going on from the checkpoint of step")
    leaving.kill()
    warned.recovered()

    run.wait()
    yield found
    run.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            "for good", "had no room for the workers in 15 s", marks=pytest.mark.fault("Ray", "a node killed, not replaced", "the command again once it was")
        ),
        pytest.param("replaced", "waiting for 2 workers", marks=pytest.mark.fault("Ray", "a node killed", "replaced while the run waits")),
        pytest.param("warned", "going on from", marks=pytest.mark.fault("Ray", "a node drained (preemption)", "with a spare node there")),
    ],
    ids=["for good", "replaced", "warned"],
)
def test_a_node_is_lost(losses: dict[str, Disturbed], long_run: Path, fault: Fault, name: str, says: str) -> None:
    assert says in losses[name].said
    losses[name].record(fault, long_run)


def test_a_range_of_workers_goes_on_with_what_is_left_and_takes_new_nodes_in(cluster: Cluster, small_pack: Path, tmp_path: Path) -> None:
    cluster.fill()
    options = ("--num-workers", "2", "--min-workers", "1", "--resize-every", "3", "--storage", tmp_path / "storage")
    run = RayRun(cluster.ray, small_pack, tmp_path / "range", *options, settings=("trainer.checkpoint_every_s=1",)).start()
    try:
        run.wait_for_step(30)
        before = len(run.workers)
        disturbed = Disturbed(run)
        cluster.node_of(run, 1).kill()
        disturbed.recovered()
        assert [worker.rank for worker in run.workers[before:]] == [0], "one worker alone"

        # Nobody but Ray Train can notice this one.
        os.kill(run.worker(0).pid, signal.SIGSTOP)
        Disturbed(run).recovered()

        alone = len(run.workers)
        cluster.fill()
        wait_for(lambda: {worker.rank for worker in run.workers[alone:]} == {0, 1}, f"two workers again\n{run.said}", 600)
        run.wait()
    finally:
        run.close()
    last = torch.load(tmp_path / "range" / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = [event["epoch"] for event in read_events(tmp_path / "range") if "val_loss" in event["values"]]
    assert epochs == list(range(1, EPOCHS + 1)), "each epoch once"
    assert (last["position"]["epoch"], last["position"]["images"]) == (EPOCHS, 0)
    assert 24 * EPOCHS < last["global_step"] < 48 * EPOCHS, "some epochs took the steps of two workers, some those of one"

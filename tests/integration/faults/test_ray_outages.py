"""What takes minutes under Ray: the object store away, the network to a node cut."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.boxes import Network
from tests.integration.cluster_harness import RayCluster
from tests.integration.conftest import ObjectStore
from tests.integration.faults.conftest import Fault
from tests.integration.faults.ray_runs import Disturbed, RayRun

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
AWAY_S = 60
OFTEN = ("trainer.checkpoint_every_s=1",)


@pytest.mark.fault("Ray", f"object storage away for {AWAY_S} s", "inside an epoch")
def test_the_object_store_is_away_for_a_minute(object_store: ObjectStore, small_pack: Path, tmp_path: Path, long_run: Path, fault: Fault) -> None:
    object_store.put("outage", {})
    with RayCluster(head_options={"num-cpus": 2}) as cluster:
        run = RayRun(
            cluster, small_pack, tmp_path / "away", "--num-workers", "2", "--storage", "s3://outage/runs", settings=OFTEN, **object_store.environment()
        )
        run.start()
        run.wait_for_step(30)
        disturbed = Disturbed(run)
        object_store.stop()
        back = threading.Timer(AWAY_S, object_store.start)
        back.start()
        try:
            run.wait(timeout_s=1200)
        finally:
            back.join()
            run.close()
        assert time.monotonic() - disturbed.at > AWAY_S, "the finished run is in the storage"
        assert [worker.rank for worker in run.workers] in ([0, 1], [1, 0]), "nothing was started again"
        disturbed.made = 0
        disturbed.record(fault, long_run)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.mark.fault("Ray", "the network to a node cut, a spare node there", "inside an epoch")
def test_the_cable_of_a_node_is_pulled(network: Network, small_pack: Path, tmp_path: Path, long_run: Path, fault: Fault) -> None:
    """Four machines: the head with the driver, and three nodes of one CPU, one of them spare."""
    boxes = [network.add() for _ in range(4)]
    with RayCluster(boxes=iter(boxes)) as cluster:
        for _ in range(3):
            cluster.add_node(cpus=1)
        options = ("--num-workers", "2", "--storage", tmp_path / "storage")
        run = RayRun(cluster, small_pack, tmp_path / "cut", *options, settings=OFTEN).start()
        try:
            run.wait_for_step(30)
            assert len({worker.node for worker in run.workers}) == 2, "each worker on a machine of its own"
            disturbed = Disturbed(run)
            lost = next(box for box in boxes if box.address == run.worker(1).node)
            lost.cut()
            disturbed.recovered()
            run.wait()
        finally:
            run.close()
        assert lost.address not in {worker.node for worker in run.workers[2:]}
        disturbed.record(fault, long_run)

"""A run asks for more than the cluster has: it waits, the cluster grows, it trains. The autoscaler is Ray's, its nodes are processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.integration.cluster_harness import RayCluster, autoscaling
from tests.integration.faults.ray_runs import RayRun

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]


def test_a_cluster_that_is_too_small_grows_for_a_run(small_pack: Path, tmp_path: Path) -> None:
    options, environment = autoscaling(tmp_path, max_workers=2)
    with RayCluster(head_options=options, **environment) as cluster:
        assert cluster.query("print(json.dumps(ray.cluster_resources().get('CPU', 0)))") == 0
        run = RayRun(cluster, small_pack, tmp_path / "run", "--num-workers", "2", "--storage", tmp_path / "storage").start()
        try:
            run.wait_for_line("started on", since=0, timeout_s=200)
            said = run.wait()
        except AssertionError:
            logs = cluster.folder.glob("0/session_2*/logs/monitor.*")
            pytest.fail(f"{run.said}\n" + "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs))
        finally:
            run.close()
        assert "waiting for 2 workers (CPU 2): the cluster has 1 node with CPU 0 (0 free)" in said
        assert {worker.rank for worker in run.workers} == {0, 1}
        assert (tmp_path / "run" / "checkpoint.pth").is_file()
        assert cluster.query("print(json.dumps(ray.cluster_resources()['CPU']))") == 2
    assert cluster.processes == []

"""A real Ray cluster that asks for no token, on this machine alone: it is told of wherever it is met."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.cluster_harness import RayCluster
from tests.integration.conftest import Scanvit
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]


@pytest.fixture
def dashboard() -> int:
    return free_port()


@pytest.fixture
def cluster(dashboard: int) -> Iterator[RayCluster]:
    """What asks for no token listens on loopback alone."""
    here = {"node-ip-address": "127.0.0.1", "include-dashboard": "true", "dashboard-port": dashboard, "dashboard-agent-listen-port": free_port()}
    with RayCluster(head_options=here, RAY_AUTH_MODE="disabled", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0") as cluster:
        yield cluster


def test_an_open_cluster_is_refused_unless_asked_for_and_warned_of_then(cluster: RayCluster, dashboard: int, scanvit: Scanvit, small_pack: Path) -> None:
    names = ("RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    here = {name: cluster.client_environment[name] for name in names} | {"RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN_PATH": str(scanvit.folder / "none")}
    train = ("ray", "train", "tiny", "--pack", small_pack, "--run-dir")
    no_folder = ("--storage", small_pack / "dataset.json" / "below-a-file")
    status = ("ray", "status", "--address", f"http://127.0.0.1:{dashboard}")
    started = (  # together: most of their time is that of their start
        scanvit.start(*train, "refused", **here),
        scanvit.start(*train, "warned", *no_folder, **here, RAY_AUTH_MODE="disabled"),
        scanvit.start(*status, **here, RAY_AUTH_MODE="disabled"),
    )
    refused, warned, listed = ("".join(process.communicate(timeout=300)) for process in started)
    assert [process.returncode for process in started] == [80, 81, 0], (refused, warned, listed)
    assert "asks for no token: anyone who reaches it can run code on its machines" in refused
    assert "RAY_AUTH_MODE=disabled" in refused
    is_told = f"The job server at http://127.0.0.1:{dashboard} asks for no token"
    assert is_told in warned, "on the way to what is refused for another reason"
    assert is_told in listed

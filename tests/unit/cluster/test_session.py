"""Tokens and addresses of clusters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scanvit.cluster.session import check_reachable, connected, read_token, secure
from scanvit.core.errors import ClusterError, ConfigError


def test_authentication_is_on_and_the_token_is_private(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "deep" / "token")}
    secure(environment, create=True)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert (tmp_path / "deep" / "token").stat().st_mode & 0o077 == 0
    token = read_token(environment)
    assert token is not None
    assert len(token) == 64
    secure(environment, create=True)
    assert read_token(environment) == token, "an existing token stays"


def test_a_client_makes_no_token(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    secure(environment, create=False)
    assert read_token(environment) is None
    assert read_token({"RAY_AUTH_TOKEN": " abc\n"}) == "abc"


def test_what_the_environment_says_stays_but_is_warned_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    secure(environment, create=True)
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "can run code" in caplog.text
    assert not (tmp_path / "token").exists()


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "head", ":6379", "head:port", "auto"])
def test_what_is_no_heads_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        check_reachable(address, token=None)


def test_a_port_where_nobody_listens_is_told() -> None:
    pytest.importorskip("grpc", reason="Ray is not installed")
    with pytest.raises(ClusterError, match="No Ray cluster answers"):
        check_reachable("127.0.0.1:9", token=None, timeout_s=5.0)


def test_what_is_chosen_for_a_cluster_is_not_left_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.delenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", raising=False)
    before = dict(os.environ)
    with pytest.raises(ClusterError, match="No Ray cluster answers"), connected("127.0.0.1:9", cpus=1, gpus=None):
        pass
    assert dict(os.environ) == before


def test_a_cluster_that_a_notebook_is_connected_to_keeps_its_watcher_of_preemptions(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    before = dict(os.environ)
    with connected(None, cpus=1, gpus=None, silence_s=90.0) as found:
        assert found is ray
        assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ
        assert os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "90"
        os.environ["SCANVIT_TEST_OF_ANOTHER_THREAD"] = "1"
    assert dict(os.environ) == before | {"SCANVIT_TEST_OF_ANOTHER_THREAD": "1"}
    monkeypatch.delenv("SCANVIT_TEST_OF_ANOTHER_THREAD")

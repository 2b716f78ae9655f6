"""What is said of clusters that others can reach."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scanvit.cluster import exposure
from scanvit.cluster.exposure import answers_without_token, warn_of_dashboard, warn_of_host

requests = pytest.importorskip("requests", reason="Ray is not installed")


class _JobServer(BaseHTTPRequestHandler):
    """Lists its jobs for those who show a token; for all where its server ``is_open``."""

    def do_GET(self) -> None:
        welcome = self.path == "/api/jobs/" and (self.server.is_open or "Authorization" in self.headers)  # type: ignore[attr-defined]
        self.send_response(200 if welcome else 401)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _JobServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_job_server_without_a_token_is_warned_of(server: ThreadingHTTPServer, caplog: pytest.LogCaptureFixture) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    server.is_open = False  # type: ignore[attr-defined]
    warn_of_dashboard(address)
    assert not caplog.text
    server.is_open = True  # type: ignore[attr-defined]
    warn_of_dashboard(address)
    assert f"The job server at {address} asks for no token" in caplog.text
    assert "CVE-2023-48022" in caplog.text


def test_one_that_other_machines_reach_is_warned_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "_ANSWER_S", 0.1)
    warn_of_dashboard("http://192.0.2.1:8265")
    assert "http://192.0.2.1:8265 listens on more than loopback" in caplog.text
    assert "not encrypted" in caplog.text
    assert "no token" not in caplog.text
    caplog.clear()
    warn_of_dashboard("https://192.0.2.1:8265")
    assert "listens on more than loopback" in caplog.text
    assert "not encrypted" not in caplog.text


def test_a_host_for_a_dashboard_of_our_own_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_host("127.0.0.1")
        warn_of_host(None)
    assert not caplog.text
    warn_of_host("0.0.0.0")
    assert "CVE-2023-48022" in caplog.text


def test_where_nobody_answers_nothing_is_open() -> None:
    assert not answers_without_token("http://127.0.0.1:9")

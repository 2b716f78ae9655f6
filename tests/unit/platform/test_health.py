"""Health checks against a server of our own that says what is wanted."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scanvit.platform.health import check
from scanvit.platform.services import SERVICES
from scanvit.platform.settings import Settings, init

BY_NAME = {service.name: service for service in SERVICES}
PORTS = ("MLFLOW_PORT", "RAY_DASHBOARD_PORT", "JUPYTER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
NODES = {"data": {"summary": [{"raylet": {"state": "ALIVE", "isHeadNode": True}}, {"raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 8.0, "GPU": 1.0}}}]}}


class Answers:
    """{path: (status, body, the header that must come)}."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[int, Any]] = {}
        self.wanted: str | None = None
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body = answers.by_path.get(self.path, (404, {}))
                if answers.wanted and self.headers.get("Authorization") != answers.wanted and self.path not in ("/health", "/-/ready"):
                    status = 401
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.server.shutdown()
    answers.server.server_close()


@pytest.fixture
def settings(answers: Answers, tmp_path: Path) -> Settings:
    made = init(tmp_path, {})[0]
    return replace(made, values={**made.values, **dict.fromkeys(PORTS, str(answers.server.server_port))})


@pytest.mark.parametrize(
    ("service", "secret", "header", "paths", "detail"),
    [
        ("ray-head", "RAY_AUTH_TOKEN", "Bearer {}", {"/nodes?view=summary": NODES}, "Ray, 2 nodes"),
        ("ray-worker-1", "RAY_AUTH_TOKEN", "Bearer {}", {"/nodes?view=summary": NODES}, "8 CPU, 1 GPU"),
        ("jupyter", "JUPYTER_TOKEN", "token {}", {"/api/status": {"kernels": 2}}, "Jupyter, 2 kernels"),
    ],
)
def test_a_service_is_asked_with_its_secret(
    answers: Answers, settings: Settings, service: str, secret: str, header: str, paths: dict[str, Any], detail: str
) -> None:
    answers.by_path = {path: (200, body) for path, body in paths.items()}
    answers.wanted = header.format(settings[secret])
    health = check(BY_NAME[service], settings)
    assert (health.ok, health.detail) == (True, detail)
    answers.wanted = "another"
    health = check(BY_NAME[service], settings)
    assert (health.ok, health.detail) == (False, "refuses the credentials of .env (status 401)")


def test_a_worker_that_the_head_does_not_see_is_told(answers: Answers, settings: Settings) -> None:
    answers.by_path = {"/nodes?view=summary": (200, NODES)}
    assert check(BY_NAME["ray-worker-2"], settings).detail == "the head sees 1 live worker"


@pytest.mark.parametrize("body", ["nonsense", {"data": None}, {}, []])
def test_an_answer_that_makes_no_sense_is_unhealthy_not_an_exception(answers: Answers, settings: Settings, body: Any) -> None:
    answers.by_path = {"/nodes?view=summary": (200, body)}
    assert not check(BY_NAME["ray-head"], settings).ok


def test_mlflow_is_healthy_only_where_it_lets_the_administrator_read(answers: Answers, settings: Settings) -> None:
    answers.by_path = {"/health": (200, "OK"), "/api/2.0/mlflow/experiments/search": (200, {}), "/version": (200, "3.17.2")}
    assert check(BY_NAME["mlflow"], settings).detail == "MLflow 3.17.2, with accounts"
    answers.by_path["/api/2.0/mlflow/experiments/search"] = (500, {})
    assert check(BY_NAME["mlflow"], settings).detail == "answers with status 500"


def test_prometheus_and_grafana_tell_what_they_see(answers: Answers, settings: Settings) -> None:
    targets = {"data": {"activeTargets": [{"health": "up"}, {"health": "down"}]}}
    answers.by_path = {"/-/ready": (200, "Ready"), "/api/v1/targets?state=active": (200, targets), "/api/health": (200, {"version": "13.2.1"})}
    assert check(BY_NAME["prometheus"], settings).detail == "1 of 2 targets up"
    assert check(BY_NAME["grafana"], settings).detail == "Grafana 13.2.1"


def test_a_closed_port_does_not_listen(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    closed = replace(settings, values={**settings.values, "JUPYTER_PORT": str(port)})
    assert check(BY_NAME["jupyter"], closed).detail == "does not listen"


def test_a_server_that_hangs_up_is_unhealthy(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        rude = replace(settings, values={**settings.values, "JUPYTER_PORT": str(server.getsockname()[1])})
        assert not check(BY_NAME["jupyter"], rude).ok

"""A real MLflow server on loopback that can be killed, started again and paused, and a proxy before it that loses and delays answers."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.ports import free_port


class MlflowServer:
    """``backend``: a database URI; a SQLite file in ``folder`` where it is left out."""

    def __init__(self, folder: Path, *, backend: str | None = None, options: tuple[str, ...] = (), **environment: str) -> None:
        self.port = free_port()
        self.folder, self.options, self.environment = folder, options, environment
        self.backend = backend or f"sqlite:///{folder}/server.db"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> str:
        store = ["--backend-store-uri", self.backend, "--artifacts-destination", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *store, *self.options]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | self.environment
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1600):
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return self.uri
            time.sleep(0.05)
        raise AssertionError((self.folder / "server.log").read_text())

    def signal(self, signum: int) -> None:
        """To the server and the worker that it started."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose path ends in ``path``."""

    path: str
    kind: str
    """lose: passed on, never answered; cut: half of the answer; half: half of the request is passed on; delay; or the code of an error."""
    times: int = 1
    delay_s: float = 0.0


@dataclass
class Proxy:
    """Stands before a server. ``seen``: "METHOD path" of each request."""

    upstream: int
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, path: str, kind: str, *, times: int = 1, delay_s: float = 0.0) -> None:
        self.faults.append(Fault(path, kind, times, delay_s))

    def take(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and path.split("?")[0].endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.seen.append(f"{self.command} {self.path.split('?')[0]}")
        fault = self.proxy.take(self.path)
        kind = fault.kind if fault else ""
        if kind == "delay":
            assert fault is not None
            time.sleep(fault.delay_s)
        if kind.isdigit():
            self._answer(int(kind), [], b"broken")
            return
        if kind == "half":
            self._send_half(body)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            content = response.read()
        except OSError:
            self.close_connection = True
            return
        finally:
            connection.close()
        if kind == "lose":
            self.close_connection = True
            return
        self._answer(response.status, response.getheaders(), content, sent=len(content) // 2 if kind == "cut" else None)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])
        self.close_connection = self.close_connection or sent is not None

    def _send_half(self, body: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.proxy.upstream), timeout=20) as upstream:
            head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            upstream.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

"""The command line as a user has it: in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import psutil
import pytest
from tests.mlflow_server import MlflowServer
from tests.openstack_programs import openstack_programs
from tests.ports import free_ports

SOURCES = Path(__file__).resolve().parents[2] / "src"


def _heed_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scanvit:
    """Starts ``scanvit`` commands. Whatever is still running at a test's end is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *args: str | Path, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        """``prefix``: a command that runs the command behind it."""
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "scanvit", *map(str, args)],
            env=self.environment() | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        self.processes.append(process)
        return process

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return clean | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

    def close(self) -> None:
        """Kill what is still running, with all that it started."""
        for process in self.processes:
            started: list[psutil.Process] = []  # some lead sessions of their own, and hold the pipes open
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for one in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.communicate()

    def __call__(self, *args: str | Path, code: int = 0, **environment: str) -> str:
        """Run to the end and return stdout and stderr; fails the test on another exit code or a traceback."""
        process = self.start(*args, **environment)
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no end after 600 s: scanvit {' '.join(map(str, args))}\n{process.communicate()}")
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out + err


@pytest.fixture
def scanvit(tmp_path: Path) -> Iterator[Scanvit]:
    runner = Scanvit(tmp_path)
    yield runner
    runner.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 300 kB; skips where it cannot be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine refuses to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


class ObjectStore:
    """A real Swift with its S3 API, on loopback, started by the script beside the checkout."""

    def __init__(self, script: Path, folder: Path, port: int) -> None:
        self.script, self.folder, self.port = script, folder, port
        (folder / "venv").symlink_to(openstack_programs())  # where the script would install Swift for this folder alone

    def start(self) -> None:
        done = subprocess.run([self.script, "start", self.folder, str(self.port)], capture_output=True, text=True, timeout=280)
        if done.returncode:
            pytest.skip(f"the object store does not start here: {(done.stdout + done.stderr)[-300:]}")

    def stop(self) -> None:
        pids = [int(pid) for pid in (self.folder / "pids").read_text().split()]
        subprocess.run([self.script, "stop", self.folder], capture_output=True, timeout=30)
        until = time.monotonic() + 60
        while (any(map(_is_running, pids)) or not self._has_left_its_ports()) and time.monotonic() < until:
            time.sleep(0.05)

    def _has_left_its_ports(self) -> bool:
        """Its memcached ends a little after the others: a successor that cannot listen leaves the store at 503 for good."""
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(self.port, self.port + 5):
                sockets.enter_context(socket.create_server(("127.0.0.1", port)))
            return True
        return False

    def environment(self, port: int | None = None) -> dict[str, str]:
        """Of a client that goes to ``port`` (a proxy's) instead of the server's."""
        address = f"http://127.0.0.1:{port or self.port}"
        swift = {"ST_AUTH": f"{address}/auth/v1.0", "ST_USER": "test:tester", "ST_KEY": "testing"}
        s3 = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1"}
        return swift | s3

    def put(self, container: str, names: dict[str, bytes]) -> None:
        """Objects of any name, by Swift's own interface: what a hostile or careless neighbour may upload."""
        credentials = {"X-Storage-User": "test:tester", "X-Storage-Pass": "testing"}
        answer = urlopen(Request(f"http://127.0.0.1:{self.port}/auth/v1.0", headers=credentials), timeout=20)
        url, token = answer.headers["X-Storage-Url"], {"X-Auth-Token": answer.headers["X-Auth-Token"]}
        answer.close()
        for path, data in {"": b"", **names}.items():
            target = f"{url}/{container}" + (f"/{quote(path, safe='')}" if path else "")
            urlopen(Request(target, data=data, method="PUT", headers=token | {"Content-Type": "application/octet-stream"}), timeout=20).close()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    script = SOURCES.parents[1] / "shared" / "platform" / "objstore.sh"
    if not script.is_file():
        pytest.skip("the script that starts an object store is not beside this checkout (../shared/platform/objstore.sh)")
    store = ObjectStore(script, tmp_path_factory.mktemp("objects"), free_ports(5))
    store.start()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for all tests: what a test does to it, it has to undo. Each test uses a run, or an experiment, of its own."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    shutil.copy(server.folder / "server.db", server.folder / "empty.db")
    yield server
    server.kill()


@pytest.fixture
def empty_store(mlflow_server: MlflowServer, tmp_path: Path) -> Path:
    """An MLflow database with its tables and nothing else: making one takes seconds."""
    return Path(shutil.copy(mlflow_server.folder / "empty.db", tmp_path / "mlflow.db"))


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # where nobody reaps them
    except psutil.NoSuchProcess:
        return False

"""A Ray cluster of one machine: a head without work of its own, and a worker with the machine's CPUs and GPUs. All of it asks for the token."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path

from ...core.errors import PlatformError, PlatformStateError
from .. import ray_start
from ..settings import Settings, load
from ..variables import LOOPBACK
from .programs import MARKER, Program, base_environment, needs

_AGENT_PORTS = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port", "--runtime-env-agent-port")
# By its name for other systems, Linux heeds it as well: without it, Ray's agent and the drivers of jobs look for the head at an address of the network.
_LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_HEAD_S = 300.0
_HEAD_STORE_BYTES = 150_000_000  # the head holds no data of jobs


def programs(settings: Settings) -> list[Program]:
    environment = base_environment(settings.folder) | settings.client_environment() | {"DATA_PATH": settings["DATA_PATH"], "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= ray_start.PATIENCE
    node = [sys.executable, "-m", "scanvit.platform.native.ray_nodes", "start", "--block", "--disable-usage-stats"]
    node += [] if settings.bind == "0.0.0.0" else ["--node-ip-address", settings.bind]  # noqa: S104
    head = ["--head", "--port", settings["RAY_PORT"], "--dashboard-host", settings.bind, "--dashboard-port", settings["RAY_DASHBOARD_PORT"]]
    head += ["--temp-dir", str(session_folder(settings))]
    head += ["--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", str(_HEAD_STORE_BYTES)]
    return [
        Program(name="ray-head", command=(*node, *head), environment=environment, host=settings.host, port=settings.port("RAY_DASHBOARD_PORT")),
        Program(
            name="ray-worker-1",
            command=(*node, "--address", f"{settings.host}:{settings['RAY_PORT']}"),
            environment=environment,
            after=("ray-head",),
        ),
    ]


def prepare(settings: Settings) -> None:
    """A folder for Ray's sessions that nobody else has laid there. Raises PlatformStateError."""
    needs("ray", extra="ray")
    folder = session_folder(settings)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PlatformStateError(f"{folder} belongs to somebody else.", hint="Set TMPDIR to a folder of your own, or remove it.") from None


def session_folder(settings: Settings) -> Path:
    """Short, since the paths of Ray's sockets must have less than 108 characters; the same for the same platform."""
    digest = hashlib.sha256(str(settings.folder.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"scanvit-ray-{digest}"


def free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        return [sockets.enter_context(socket.create_server((LOOPBACK, 0))).getsockname()[1] for _ in range(count)]


def _wait_for_head(settings: Settings) -> None:
    """The head's port opens before the head is a node. Two nodes that start at once may take longer than the 30 s that Ray grants each."""
    from ..health import ray_nodes

    until = time.monotonic() + _HEAD_S
    while time.monotonic() < until:
        with suppress(PlatformError, OSError, HTTPException, ValueError, KeyError, TypeError):
            if any(node["raylet"].get("isHeadNode") for node in ray_nodes(settings)):
                return
        time.sleep(0.5)


def main() -> None:
    """``ray``'s command line, which takes 127.0.0.1 at its word: Ray itself would put an address of the network in its place, and listen there."""
    from ray._private import services

    if "--address" in sys.argv:
        _wait_for_head(load(Path(os.environ[MARKER])))
    # Two nodes of one machine would both take Ray's fixed port for the first; of the others that it chooses by itself, it waits until each is told.
    for option, port in zip(_AGENT_PORTS, free_ports(len(_AGENT_PORTS)), strict=True):
        sys.argv += [option, str(port)]
    if LOOPBACK in sys.argv:
        services.resolve_ip_for_localhost = lambda host: host
        os.environ[_LOOPBACK_ALONE] = "0"  # read at import: by what this process starts, not by itself, which would refuse to join a head
    ray_start.main()


if __name__ == "__main__":
    main()

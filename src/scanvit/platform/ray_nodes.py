"""A Ray cluster of one machine: a head without work of its own, and a worker with the machine's CPUs and GPUs. All of it asks for the token."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from ..core.errors import PlatformStateError
from .programs import Program, base_environment, needs
from .settings import LOOPBACK, Settings

_HEAD_STORE_BYTES = 150_000_000  # the head holds no data of jobs


def programs(settings: Settings) -> list[Program]:
    environment = base_environment(settings.folder) | settings.client_environment() | {"DATA_PATH": settings["DATA_PATH"], "RAY_USAGE_STATS_ENABLED": "0"}
    del environment["RAY_ADDRESS"]  # of the job server: a node would take it for the cluster's
    node = [sys.executable, "-m", "scanvit.platform.ray_nodes", "start", "--block", "--disable-usage-stats", "--dashboard-agent-listen-port", "0"]
    node += [] if settings.bind == "0.0.0.0" else ["--node-ip-address", settings.bind]  # noqa: S104
    head = ["--head", "--port", settings["RAY_PORT"], "--dashboard-host", settings.bind, "--dashboard-port", settings["RAY_DASHBOARD_PORT"]]
    head += ["--ray-client-server-port", settings["RAY_CLIENT_SERVER_PORT"], "--temp-dir", str(session_folder(settings))]
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


def main() -> None:
    """``ray``'s command line, which takes 127.0.0.1 at its word: Ray itself would put an address of the network in its place, and listen there."""
    from ray._private import services
    from ray.scripts.scripts import main as ray

    if LOOPBACK in sys.argv:
        services.resolve_ip_for_localhost = lambda host: host
    ray()


if __name__ == "__main__":
    main()

"""A Ray cluster of one machine: a head without work of its own, and a worker with the machine's CPUs and GPUs. All of it asks for the token."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from ..core.errors import PlatformStateError
from .programs import Program, base_environment, find_program, needs
from .settings import Settings

_EXTRA = "scripts/install all   (or: pip install 'scanvit[ray]')"
_HEAD_STORE_BYTES = 150_000_000  # the head holds no data of jobs


def programs(settings: Settings) -> list[Program]:
    ray = find_program("ray", package=_EXTRA)
    environment = base_environment(settings.folder) | settings.client_environment() | {"DATA_PATH": settings["DATA_PATH"], "RAY_USAGE_STATS_ENABLED": "0"}
    del environment["RAY_ADDRESS"]  # of the job server: a node would take it for the cluster's
    node = [ray, "start", "--block", "--disable-usage-stats"] + ([] if settings.bind == "0.0.0.0" else ["--node-ip-address", settings.bind])  # noqa: S104
    head = ["--head", "--port", settings["RAY_PORT"], "--dashboard-host", settings.bind, "--dashboard-port", settings["RAY_DASHBOARD_PORT"]]
    head += ["--ray-client-server-port", "0", "--temp-dir", str(session_folder(settings))]  # 0: none; jobs are submitted to the dashboard
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

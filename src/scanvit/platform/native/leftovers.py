"""Ending processes with all that they started, and finding those of a platform whose supervisor was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from .programs import MARKER

PATIENCE_S = 15.0  # between asking and killing


def end_group(group: int, *, patience_s: float) -> None:
    """SIGTERM to a process group, SIGKILL to what is still there after ``patience_s``. The group's leader may be dead already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            return
        _until(lambda: not _has_members(group), patience_s)


def _has_members(group: int) -> bool:
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def end_descendants() -> None:
    """All below this process, which has inherited those whose parents have died."""
    end_all(psutil.Process().children(recursive=True))


def end_all(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):  # PostgreSQL's SIGINT: on SIGTERM it would wait for its sessions
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def leftovers(folder: Path) -> list[psutil.Process]:
    """Processes that carry the platform's marker, and its PostgreSQL, which writes its title over its environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and _belongs(process, folder):
                found.append(process)
    return found


def _belongs(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.AccessDenied):
        if process.environ().get(MARKER) == str(folder):
            return True
    return process.name() == "postgres" and str(folder / "data" / "postgres") in process.cmdline()


def end_leftovers(folder: Path) -> list[int]:
    """Their process ids. Call it only where no supervisor of the platform runs."""
    found = leftovers(folder)
    end_all(found)
    return [process.pid for process in found]


def _until(condition: Callable[[], bool], patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)


def listening(ports: Iterable[int]) -> dict[int, str]:
    """{port: "NAME (process N)"} of those that somebody listens on, as far as this user may see."""
    wanted, found = set(ports), dict[int, str]()
    with suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            port = connection.laddr.port if connection.laddr else None
            if connection.status == psutil.CONN_LISTEN and port in wanted and connection.pid:
                with suppress(psutil.Error):
                    found[port] = f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return found

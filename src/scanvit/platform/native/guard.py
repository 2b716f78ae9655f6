"""A process that inherits every descendant of another, and ends them when that one is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ...storage.processes import inherit_orphans, on_parent_death
from .leftovers import end_descendants


def guarded(lock: Path, work: Callable[[], None]) -> NoReturn:
    """Run ``work`` in a child and exit when it has ended, with all that it started. Holds ``lock`` meanwhile, which names this process."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("Another supervisor runs already.")
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    inherit_orphans()
    child = os.fork()
    if child == 0:
        on_parent_death(signal.SIGTERM)()
        work()
        sys.exit(0)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    _wait_for(child)
    end_descendants()
    sys.exit(0)


def _wait_for(child: int) -> None:
    """Also buries orphans that come to this process."""
    while True:
        ended, _ = os.wait()
        if ended == child:
            return


def holder(lock: Path) -> int | None:
    """The process that holds the lock, None where nobody does."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
        return int(text) if text.isdecimal() else 0
    finally:
        os.close(descriptor)
    return None

"""Child processes that do not outlive what they are for."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # loaded before any fork


def stops_with_parent() -> None:
    """Called in a new child: the kernel sends it SIGTERM when its parent dies, however that dies. Only Linux knows this."""
    on_parent_death(signal.SIGTERM)()


def on_parent_death(number: int) -> Callable[[], None]:
    """The same with another signal."""

    def ask() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number)

    return ask


def inherit_orphans() -> None:
    """From now on, descendants whose parents die become children of this process, not of the machine's first. Only Linux knows this."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end(process: subprocess.Popen[bytes], *, patience_s: float = 10) -> None:
    """SIGTERM, and SIGKILL where that is not heard; nothing where it has ended already."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()

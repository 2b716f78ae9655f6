"""Child processes that do not outlive what they are for."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # loaded before any fork


def stops_with_parent() -> None:
    """Called in a new child: the kernel sends it SIGTERM when its parent dies, however that dies. Only Linux knows this."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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

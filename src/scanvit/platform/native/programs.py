"""A service as a process: what to run, as whom, after what."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import EngineError

# Every process of a platform carries this variable with the platform's folder: so they are found again when their supervisor was killed.
MARKER = "SCANVIT_PLATFORM"


@dataclass(frozen=True, kw_only=True)
class Program:
    """``port``: where it listens once it is ready, on ``host``; None where only living on shows that. ``after``: programs that must be ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    host: str = "127.0.0.1"
    port: int | None = None
    after: tuple[str, ...] = ()
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    cwd: Path | None = None


def base_environment(folder: Path) -> dict[str, str]:
    """Little of the caller's: a variable of one shell must not decide how a service runs."""
    kept = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    return {name: os.environ[name] for name in kept if name in os.environ} | {MARKER: str(folder), "PYTHONUNBUFFERED": "1"}


def find_program(name: str, *, folders: tuple[str, ...] = (), package: str) -> str:
    """The path of a program beside this Python, on the PATH or in ``folders``. Raises EngineError that names what brings it."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), *folders]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise EngineError(f"The program {name} is not installed.", hint=f"Install it: {package}")
    return found


def needs(module: str, *, extra: str) -> None:
    """Raise EngineError where a package of an optional extra is missing."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise EngineError(f"The Python package {module} is not installed.", hint=f"It comes with: scripts/install all   (or: pip install 'scanvit[{extra}]')")

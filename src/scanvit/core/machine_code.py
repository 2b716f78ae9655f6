"""Loops that numba compiles: how, and where the machine code is kept for later processes. Importing this imports numba (0.3 s)."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding

from .runtime import importing

_settings: Any = numba.config
CHECKED = bool(_settings.BOUNDSCHECK)
"""Whether every access is checked (NUMBA_BOUNDSCHECK=1): slow, for tests."""
_log = logging.getLogger(__name__)


class MachineCode:
    """The compiled functions of ``sources``, kept together in a folder of their own: one for each content of these files, version of the compiler
    and processor, as numba itself looks at the one file that a function stands in. It writes by renaming.

    ``what``: they are, for the message of ``once``; ``takes``: compiling them, likewise.
    """

    def __init__(self, name: str, sources: Iterable[Path], *, what: str, takes: str) -> None:
        self._what, self._takes = what, takes
        processor = f"{_settings.CPU_NAME or binding.get_host_cpu_name()} {_settings.CPU_FEATURES or binding.get_host_cpu_features().flatten()}"
        content = hashlib.sha256(f"{numba.__version__} {CHECKED} {processor}".encode())
        for file in sorted([Path(__file__), *sources]):
            content.update(file.read_bytes())
        home = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"
        self.folder = Path(_settings.CACHE_DIR or Path(home) / "scanvit" / "compiled") / f"{name}-{content.hexdigest()[:16]}"

    def compiled(self, function: Callable[..., Any]) -> Any:
        """Compiled at the first call and kept; where the folder cannot be written, compiled in each process. Releases the interpreter lock."""
        return self._kept(numba.njit, function, nogil=True)

    def called_from_c(self, signature: Any) -> Callable[[Callable[..., Any]], Any]:
        """A function that C may call, by its ``address``; compiled or loaded at once."""
        return lambda function: self._kept(numba.cfunc, function, signature)

    def _kept(self, compiler: Any, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        before, _settings.CACHE_DIR = _settings.CACHE_DIR, str(self.folder)
        try:
            with importing():  # numba's own modules, at the first function
                return compiler(*args, cache=True, **options)(function)
        except (OSError, RuntimeError):
            return compiler(*args, **options)(function)
        finally:
            _settings.CACHE_DIR = before

    def once(self, compile_all: Callable[[], object]) -> None:
        """Call ``compile_all`` unless a process has done so before; of several that start together, one does, and the others wait for it."""
        ready = self.folder / "ready"
        if ready.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not ready.exists():
                    _log.warning("The %s is compiled for this processor: once, %s. The result is kept in %s.", self._what, self._takes, self.folder)
                    compile_all()
                    ready.touch()
        except OSError as cause:
            _log.warning("The %s is compiled anew by every process, as %s cannot be written: %s.", self._what, self.folder, cause.strerror or cause)

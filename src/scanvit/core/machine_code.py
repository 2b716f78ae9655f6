"""Loops that numba compiles: how, and where the machine code is kept for later processes. numba is imported where something has to be compiled,
or is called from Python."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from llvmlite import binding

from . import object_file
from .runtime import importing

_SETTINGS = tuple(f"NUMBA_{name}" for name in ("BOUNDSCHECK", "CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "DEBUGINFO", "ENABLE_PROFILING"))
"""Environment variables of numba's that change what it makes."""
_log = logging.getLogger(__name__)


class MachineCode:
    """The compiled functions of ``sources``, kept together in a folder of their own: one for each content of these files, version of the compiler
    and processor, as numba itself looks at the one file that a function stands in. It is written by renaming.

    ``what``: they are, for the message of ``once``; ``takes``: compiling them, likewise.
    """

    def __init__(self, name: str, sources: Iterable[Path], *, what: str, takes: str) -> None:
        self._what, self._takes = what, takes
        settings = [os.environ.get(setting) for setting in _SETTINGS]
        processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
        content = hashlib.sha256(f"{metadata.version('numba')} {settings} {processor}".encode())
        for file in sorted([Path(__file__), Path(object_file.__file__), *sources]):
            content.update(file.read_bytes())
        home = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"
        self.folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(home) / "scanvit" / "compiled") / f"{name}-{content.hexdigest()[:16]}"

    def compiled(self, function: Callable[..., Any]) -> Any:
        """Compiled at the first call and kept; where the folder cannot be written, compiled in each process. Releases the interpreter lock."""
        import numba

        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(self.folder)
        try:
            return numba.njit(nogil=True, cache=True)(function)
        except (OSError, RuntimeError):
            return numba.njit(nogil=True)(function)
        finally:
            settings.CACHE_DIR = before

    def addresses(self, names: Iterable[str], make: Callable[[], Mapping[str, Any]], *, calls: Mapping[str, int]) -> dict[str, int]:
        """Of C functions, each ``void (int64_t *)``. ``make`` compiles them, by ``numba.cfunc``, where the folder does not hold them yet; once it
        does, they are loaded without numba, which would take 0.7 s. ``calls``: the functions that they call in turn, with their addresses.

        Such a function may take no memory and raise nothing: ``object_file.link`` refuses one that could, by a ValueError.
        """
        file = self.folder / "functions.o"

        @cache
        def made() -> bytes:
            with importing("numba"):
                return object_file.link(make(), calls=calls)

        self.once(lambda: _keep(file, made()))
        code = None
        with contextlib.suppress(OSError):
            code = _whole(file.read_bytes())
        if code is None:  # damaged, or the folder cannot be written
            code = made()
            with contextlib.suppress(OSError):
                _keep(file, code)
        return object_file.load(code, names, calls=calls)

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


def _keep(file: Path, code: bytes) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        new.write_bytes(hashlib.sha256(code).digest() + code)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _whole(data: bytes) -> bytes | None:
    """The code, or None of a file that is not as it was written: LLVM would end the process."""
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None

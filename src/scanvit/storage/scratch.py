"""Arrays too long to hold: nameless files that are mapped into memory, which the system may write out at any time, and which end with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .atomic import storage_errors

ROWS_AT_ONCE = 1 << 16
_HELD_BYTES = 1 << 20
"""What is shorter stays in memory: a small data set writes no scratch file."""
_FOLDER: ContextVar[Path | None] = ContextVar("scratch folder", default=None)


@contextmanager
def scratch_in(folder: Path) -> Iterator[None]:
    """Put the scratch files of the block there. Elsewhere they go to the system's temporary folder, which may be memory itself."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


class Spool:
    """Bytes that grow at their end. Written, not mapped, while they grow: a full disk is an error then and no signal later."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._stream: IO[bytes] | None = None
        self._written_bytes = 0

    def write(self, data: bytes | memoryview | npt.NDArray[Any]) -> None:
        """The bytes of an array in C order."""
        self._held += np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        if len(self._held) >= _HELD_BYTES:
            self._flush()

    def array(self, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
        """All that was written so far, read-only: of ``shape`` in each row."""
        if self._stream is None:
            return np.frombuffer(bytes(self._held), dtype).reshape(-1, *shape)
        self._flush()
        return np.frombuffer(mmap.mmap(self._stream.fileno(), self._written_bytes, access=mmap.ACCESS_READ), dtype).reshape(-1, *shape)

    def _flush(self) -> None:
        with _errors():
            if self._stream is None:
                self._stream = tempfile.TemporaryFile(dir=_FOLDER.get(), buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._stream.close)  # maps of it live on
            view = memoryview(self._held)
            while view:
                view = view[self._stream.write(view) :]
        self._written_bytes += len(self._held)
        self._held = bytearray()


def scratch_zeros(length: int, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """(length, *shape): zeros to write to."""
    size_bytes = length * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size_bytes <= _HELD_BYTES:
        return np.zeros((length, *shape), dtype)
    with _errors(), tempfile.TemporaryFile(dir=_FOLDER.get()) as file:
        # The space is taken now: a map that finds the disk full later ends the process.
        os.posix_fallocate(file.fileno(), 0, size_bytes) if hasattr(os, "posix_fallocate") else os.truncate(file.fileno(), size_bytes)
        return np.frombuffer(mmap.mmap(file.fileno(), size_bytes), dtype).reshape(length, *shape)


def spooled(pieces: Iterator[npt.NDArray[Any]], dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """The pieces end to end, read-only."""
    spool = Spool()
    for piece in pieces:
        spool.write(piece.astype(dtype, copy=False))
    return spool.array(dtype, *shape)


def pieces_of(length: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Consecutive slices that cover 0..length-1."""
    return (slice(start, min(start + at_once, length)) for start in range(0, length, at_once))


@contextmanager
def _errors() -> Iterator[None]:
    with storage_errors(_FOLDER.get() or Path(tempfile.gettempdir())):
        yield

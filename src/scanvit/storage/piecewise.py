"""What the ways to an object store that need no other program have in common: several objects at once, each in pieces that a signal can come between."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TypeVar

from .atomic import storage_errors
from .credentials import Credentials
from .remote import Remote, RemoteObject

PIECE_BYTES = 1 << 20
_COPIERS = 8
T = TypeVar("T")
R = TypeVar("R")


class PiecewiseStore(ABC):
    """Half of a Store of remote.py. ``path``: of an object, with its bucket."""

    def __init__(self, remote: Remote, credentials: Credentials) -> None:
        self.remote = remote
        self.credentials = credentials
        self._stopped = threading.Event()

    @abstractmethod
    def pieces(self, path: str) -> AbstractContextManager[Iterator[bytes]]:
        """An object's bytes, as they come."""

    @abstractmethod
    def upload(self, path: str, source: Source) -> None:
        """Make an object of a file. Where reading it raises, none appears."""

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        count = _Counter(on_bytes)

        def one(item: RemoteObject) -> None:
            path = target / item.name
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Without a buffer, which would be written once more, and refused once more, while the file is being closed.
                file = open(path, "wb", buffering=0)  # noqa: SIM115 - what the store refuses below is no error of this disk
            with file, self.pieces(f"{folder.path}/{item.name}") as pieces:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        with storage_errors(path):
                            rest = rest[file.write(rest) :]
                    count.add(len(piece))

        self.map(one, objects, _COPIERS)

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        count = _Counter(on_bytes)

        def one(name: str) -> None:
            with open(source / name, "rb") as file:
                self.upload(f"{self.remote.path}/{name}", Source(file, count, self._stopped))

        self.map(one, names, _COPIERS)

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        def one(name: str) -> tuple[str, str]:
            digest = hashlib.md5(usedforsecurity=False)
            with self.pieces(f"{folder.path}/{name}") as pieces:
                for piece in pieces:
                    digest.update(piece)
            return name, digest.hexdigest()

        return dict(self.map(one, names, _COPIERS))

    def map(self, function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
        """In the order of the items. The first error, or a signal, stops the others at their next piece."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(workers)
        try:
            return [future.result() for future in [pool.submit(function, item) for item in items]]
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()


class Source:
    """A file on its way: what is read is counted, and what is read again after a failed try is not counted twice."""

    def __init__(self, file: IO[bytes], count: _Counter, stopped: threading.Event) -> None:
        self._file, self._count, self._stopped = file, count, stopped
        self.size_bytes = os.fstat(file.fileno()).st_size

    def read(self, size: int = PIECE_BYTES) -> bytes:
        if self._stopped.is_set():
            raise CancelledError("another object has failed, or a signal came")
        piece = self._file.read(size)
        self._count.add(len(piece))
        return piece

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        self._count.add(position - self._file.tell())
        return self._file.seek(position)


class _Counter:
    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes, self._lock, self._done = on_bytes, threading.Lock(), 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._on_bytes(self._done)

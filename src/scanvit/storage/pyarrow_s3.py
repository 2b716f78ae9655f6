"""S3 through pyarrow, where rclone is not installed.

A listing by pyarrow has no checksums, so they come from one HEAD request an object, sixteen at a time. An ETag of 32 hexadecimal digits is
the MD5 of what was uploaded in one piece (unless it is encrypted with a key of KMS); that of an upload in parts is none.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .atomic import storage_errors
from .credentials import Credentials
from .failures import explain, missing
from .rclone import Limits
from .remote import Listing, Remote, RemoteObject, check_names

_PIECE_BYTES = 1 << 20
_LOOKERS, _COPIERS = 16, 8
T = TypeVar("T")
R = TypeVar("R")


def s3_filesystem(credentials: Credentials, *, limits: Limits | None = None, allow_bucket_creation: bool = False) -> Any:
    """pyarrow's view of the store that the credentials are for. It can be sent to other processes, with the credentials inside."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    limits = limits or Limits()
    settings = credentials.settings
    url = urlsplit(settings.get("endpoint", ""))
    return S3FileSystem(
        access_key=settings["access_key_id"],
        secret_key=settings["secret_access_key"],
        session_token=settings.get("session_token"),
        region=settings["region"],
        scheme=url.scheme or "https",
        endpoint_override=url.netloc + url.path.rstrip("/") or None,
        connect_timeout=limits.connect_s,
        request_timeout=limits.idle_s,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=limits.tries),
        tls_ca_file_path=credentials.ca_file,
        allow_delayed_open=True,
        allow_bucket_creation=allow_bucket_creation,
    )


class PyarrowS3:
    """One S3 remote through pyarrow; the Store of remote.py."""

    def __init__(self, remote: Remote, credentials: Credentials, *, limits: Limits | None = None) -> None:
        self.remote = remote
        self.credentials = credentials
        self._stopped = threading.Event()
        # What is under 5 MB goes up in one piece, so that its ETag is an MD5.
        self._files = s3_filesystem(credentials, limits=limits, allow_bucket_creation=True)

    def listing(self, *, checksums: bool) -> Listing:
        from pyarrow.fs import FileSelector, FileType

        with self._errors():
            named = self._files.get_file_info(self.remote.path)
            single = bool(self.remote.prefix) and named.type == FileType.File
            if named.type == FileType.NotFound and self._files.get_file_info(self.remote.bucket).type == FileType.NotFound:
                raise missing(self.remote)
            below = FileSelector(self.remote.path, recursive=True, allow_not_found=True)
            found = [named] if single else self._files.get_file_info(below)
        folder = self.remote.parent if single else self.remote
        start = len(folder.path) + 1
        sizes = {info.path[start:]: info.size for info in found if info.type == FileType.File}
        if checksums:
            check_names(sizes, where=str(self.remote))  # pyarrow takes the slashes off some names: it would ask for another object
        digests = dict(self._map(lambda name: (name, self._md5(f"{folder.path}/{name}")), list(sizes), _LOOKERS)) if checksums else {}
        return Listing(folder=folder, objects=tuple(RemoteObject(name=n, size_bytes=sizes[n], md5=digests.get(n)) for n in sorted(sizes)))

    def top(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with self._errors():
            return sorted(info.base_name for info in self._files.get_file_info(FileSelector(self.remote.path)))

    def create_bucket(self) -> None:
        with self._errors():
            self._files.create_dir(self.remote.bucket)

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        count = _Counter(on_bytes)

        def one(item: RemoteObject) -> None:
            path = target / item.name
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Without a buffer, which would be written once more, and refused once more, while the file is being closed.
                file = open(path, "wb", buffering=0)  # noqa: SIM115 - what S3 refuses below is no error of this disk
            with file:
                for piece in self._pieces(f"{folder.path}/{item.name}"):
                    rest = memoryview(piece)
                    while rest:
                        with storage_errors(path):
                            rest = rest[file.write(rest) :]
                    count.add(len(piece))

        self._map(one, objects, _COPIERS)

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        count = _Counter(on_bytes)

        def one(name: str) -> None:
            path = f"{self.remote.path}/{name}"
            with open(source / name, "rb") as file:
                with self._errors():
                    output = self._files.open_output_stream(path)
                try:
                    while piece := file.read(_PIECE_BYTES):
                        if self._stopped.is_set():
                            raise InterruptedError
                        with self._errors():
                            output.write(piece)
                        count.add(len(piece))
                except BaseException:
                    # Closing makes an object of what has come so far, and there is no way to give up: the object has to go again.
                    with self._errors():
                        output.close()
                        self._files.delete_file(path)
                    raise
                with self._errors():
                    output.close()

        self._map(one, names, _COPIERS)

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        def one(name: str) -> tuple[str, str]:
            digest = hashlib.md5(usedforsecurity=False)
            for piece in self._pieces(f"{folder.path}/{name}"):
                digest.update(piece)
            return name, digest.hexdigest()

        return dict(self._map(one, names, _COPIERS))

    def _md5(self, path: str) -> str | None:
        with self._errors(), self._files.open_input_file(path) as file:
            tag = file.metadata().get(b"ETag", b"").decode("ascii", errors="replace").strip('"')
        return tag if re.fullmatch(r"[0-9a-f]{32}", tag) else None

    def _pieces(self, path: str) -> Iterator[bytes]:
        with self._errors():
            file = self._files.open_input_stream(path)
        with file:
            while not self._stopped.is_set():
                with self._errors():
                    piece = file.read(_PIECE_BYTES)
                if not piece:
                    return
                yield piece

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """pyarrow raises OSError for all that S3 refuses, with the cause in its text, and ValueError for names that it does not take."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise explain(str(error), self.remote, self.credentials) from None

    def _map(self, function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
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


class _Counter:
    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes, self._lock, self._done = on_bytes, threading.Lock(), 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._on_bytes(self._done)

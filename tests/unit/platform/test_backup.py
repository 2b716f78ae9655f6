from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scanvit.core.errors import StorageError
from scanvit.platform import backup
from scanvit.platform.settings import Settings, init
from scanvit.storage.remote import Listing, Remote, RemoteObject
from scanvit.storage.transfer import push
from scanvit.storage.workplace import tells_apart


class Bucket:
    """A Store of remote.py in memory."""

    remote = Remote(kind="s3", bucket="mlflow")

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def listing(self, *, checksums: bool) -> Listing:
        found = [RemoteObject(name=n, size_bytes=len(b), md5=hashlib.md5(b).hexdigest()) for n, b in sorted(self.objects.items())]
        return Listing(folder=self.remote, objects=tuple(found))

    def top(self) -> list[str]:
        return []

    def create_bucket(self) -> None: ...

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        for item in objects:
            (target / item.name).parent.mkdir(parents=True, exist_ok=True)
            (target / item.name).write_bytes(self.objects[item.name])

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        self.objects |= {name: (source / name).read_bytes() for name in names}

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        return {}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket({"1/Model.pth": b"one", "1/model.pth": b"two"})
    monkeypatch.setattr(backup, "tracking_store", lambda settings: bucket)
    return bucket


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return init(tmp_path / "state", {})[0]


def test_artifacts_that_differ_in_case_are_backed_up_where_the_file_system_can(bucket: Bucket, settings: Settings, tmp_path: Path) -> None:
    if not tells_apart(tmp_path):
        pytest.skip("this file system does not tell names apart by case")
    assert backup._pull_bucket(settings, tmp_path / "copy", lambda *_: None) == (2, 6)
    assert (tmp_path / "copy" / "1" / "Model.pth").read_bytes() == b"one"
    bucket.objects.clear()
    push(bucket, tmp_path / "copy", create=True, apart=True)
    assert bucket.objects == {"1/Model.pth": b"one", "1/model.pth": b"two"}


def test_they_are_refused_where_one_would_replace_the_other(bucket: Bucket, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "tells_apart", lambda folder: False)
    with pytest.raises(StorageError, match="cannot stand side by side"):
        backup._pull_bucket(settings, tmp_path / "copy", lambda *_: None)

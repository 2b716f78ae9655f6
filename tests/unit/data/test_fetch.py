from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.file_server import FileServer, Good, Status

from scanvit.core.errors import ChecksumError, FetchError, StorageError
from scanvit.data import fetch as module
from scanvit.data.catalog import CatalogEntry
from scanvit.data.fetch import LOCK_FILE, Fetched, fetch, look
from scanvit.storage.download import DownloadPolicy

QUICK = DownloadPolicy(tries=2, base_s=0.001, timeout_s=5)
NOISE = random.Random(0)


def make_zip(files: int = 4, *, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(files):
            archive.writestr(zipfile.ZipInfo(f"set/a/{number}.png"), random.Random(seed * 100 + number).randbytes(5_000))
    return buffer.getvalue()


def make_tar_gz() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"set/a/{number}.jpeg")
            info.size = 5_000
            archive.addfile(info, io.BytesIO(NOISE.randbytes(5_000)))
    return gzip.compress(buffer.getvalue(), mtime=0)


ZIP = make_zip()


@pytest.fixture
def entry(file_server: FileServer) -> Callable[..., CatalogEntry]:
    def make(data: bytes = ZIP, name: str = "mine", file: str = "mine.zip", **values: Any) -> CatalogEntry:
        file_server.files[f"/{file}"] = data
        return CatalogEntry(**({"name": name, "url": file_server.url(f"/{file}?key=kkkk"), "file": file, "page": "https://example.org/page"} | values))

    return make


def get(entries: CatalogEntry | list[CatalogEntry], folder: Path) -> list[Fetched]:
    return fetch(entries if isinstance(entries, list) else [entries], folder, policy=QUICK)


def lock(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LOCK_FILE).read_text())["files"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_first_fetch_records_and_the_second_verifies(entry: Callable[..., CatalogEntry], file_server: FileServer, tmp_path: Path) -> None:
    mine = entry()
    (first,) = get(mine, tmp_path)
    assert (first.state, first.sha256, first.size_bytes) == ("fetched", hashlib.sha256(ZIP).hexdigest(), len(ZIP))
    assert first.path.read_bytes() == ZIP
    assert names(tmp_path) == [LOCK_FILE, "mine.zip"]
    record = lock(tmp_path)["mine.zip"]
    assert (record["sha256"], record["bytes"], record["source"]) == (first.sha256, len(ZIP), "mine")
    assert "kkkk" not in (tmp_path / LOCK_FILE).read_text()
    before, asked = (tmp_path / LOCK_FILE).read_text(), len(file_server.seen)
    assert get(mine, tmp_path)[0].state == "there"
    assert len(file_server.seen) == asked
    assert (tmp_path / LOCK_FILE).read_text() == before


def test_a_file_that_changed_on_disk_is_told_and_left_alone(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    mine = entry()
    get(mine, tmp_path)
    changed = bytearray(ZIP)
    changed[100] ^= 1
    (tmp_path / "mine.zip").write_bytes(changed)
    for attempt in (lambda: get(mine, tmp_path), lambda: look([mine], tmp_path)):
        with pytest.raises(ChecksumError, match=hashlib.sha256(ZIP).hexdigest()):
            attempt()
    assert (tmp_path / "mine.zip").read_bytes() == changed
    (tmp_path / "mine.zip").write_bytes(ZIP[:-1])
    with pytest.raises(ChecksumError, match="bytes long"):
        get(mine, tmp_path)


def test_a_file_that_changed_on_the_server_is_refused(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    get(entry(), tmp_path)
    (tmp_path / "mine.zip").unlink()
    with pytest.raises(ChecksumError, match=rf"is {len(make_zip(5)):,} bytes long; {len(ZIP):,} were recorded"):
        get(entry(make_zip(5)), tmp_path)
    assert len(make_zip(seed=1)) == len(ZIP)
    with pytest.raises(ChecksumError, match="has the SHA-256"):
        get(entry(make_zip(seed=1)), tmp_path)
    assert names(tmp_path) == [LOCK_FILE]
    assert get(entry(), tmp_path)[0].state == "fetched"


def test_the_checksum_of_the_catalog_counts_from_the_first_fetch(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    with pytest.raises(ChecksumError):
        get(entry(sha256="0" * 64), tmp_path)
    assert names(tmp_path) == []
    right = hashlib.sha256(ZIP).hexdigest()
    assert get(entry(sha256=right, size_bytes=len(ZIP)), tmp_path)[0].sha256 == right
    with pytest.raises(ChecksumError, match="two different SHA-256"):
        get(entry(sha256="0" * 64), tmp_path)


def test_a_spoilt_beginning_is_fetched_anew_once(entry: Callable[..., CatalogEntry], file_server: FileServer, tmp_path: Path) -> None:
    mine = entry(sha256=hashlib.sha256(ZIP).hexdigest())
    file_server.answers["/mine.zip"] = [Good(cut_at=9_000), Status(404)]
    with pytest.raises(FetchError):
        get(mine, tmp_path)
    part = tmp_path / "mine.zip.part"
    part.write_bytes(b"x" * part.stat().st_size)
    assert get(mine, tmp_path)[0].path.read_bytes() == ZIP
    assert [seen.headers["Range"] for seen in file_server.seen] == [None, "bytes=9000-", "bytes=9000-", None]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_file_cut_behind_an_honest_face_is_not_recorded(entry: Callable[..., CatalogEntry], tmp_path: Path, kind: str) -> None:
    data = {"zip": ZIP, "tar.gz": make_tar_gz()}[kind]
    for end in (10, len(data) // 2, len(data) - 1):
        with pytest.raises(FetchError, match="is no whole archive"):
            get(entry(data[:end], file=f"mine.{kind}"), tmp_path)
        assert names(tmp_path) == []
    assert get(entry(data, file=f"mine.{kind}"), tmp_path)[0].state == "fetched"


def test_a_damaged_member_is_not_recorded(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    data = bytearray(ZIP)
    data[200] ^= 1
    with pytest.raises(FetchError, match="is no whole archive"):
        get(entry(bytes(data)), tmp_path)


def test_a_hostile_archive_is_not_recorded(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../outside.png", b"x")
    with pytest.raises(FetchError, match="leads outside"):
        get(entry(buffer.getvalue()), tmp_path / "in")
    assert not (tmp_path / "outside.png").exists()


def test_a_page_in_place_of_the_archive_says_how_to_sign_in(entry: Callable[..., CatalogEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCANVIT_FETCH_USER", raising=False)
    credentials = {"user": "SCANVIT_FETCH_USER", "key": "SCANVIT_FETCH_KEY"}
    with pytest.raises(FetchError, match="is a web page") as caught:
        get(entry(b"<!DOCTYPE html><title>Sign in</title>", credentials=credentials), tmp_path)
    assert "Set SCANVIT_FETCH_USER and SCANVIT_FETCH_KEY" in (caught.value.hint or "")
    assert "https://example.org/page" in (caught.value.hint or "")


def test_credentials_are_sent_and_told_to_nobody(
    entry: Callable[..., CatalogEntry], file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCANVIT_FETCH_USER", "reader")
    monkeypatch.setenv("SCANVIT_FETCH_KEY", "open-sesame")
    mine = entry(credentials={"user": "SCANVIT_FETCH_USER", "key": "SCANVIT_FETCH_KEY"})
    file_server.answers["/mine.zip"] = [Status(403)]
    with pytest.raises(FetchError) as caught:
        get(mine, tmp_path)
    assert "Check SCANVIT_FETCH_USER" in (caught.value.hint or "")
    get(mine, tmp_path)
    assert all(seen.headers["Authorization"].startswith("Basic ") for seen in file_server.seen)
    token = file_server.seen[0].headers["Authorization"].split()[1]
    written = "".join(path.read_text(errors="replace") for path in tmp_path.iterdir()) + f"{caught.value}{caught.value.hint}{mine!r}"
    assert token not in written
    assert "open-sesame" not in written


def test_other_files_than_archives_are_taken_as_they_are(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    assert get(entry(b"a,b\n1,2\n", file="table.csv"), tmp_path)[0].size_bytes == 8


def test_what_was_finished_before_a_failure_stays(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    lost = entry(name="lost", file="lost.zip", url="http://127.0.0.1:1/lost.zip")
    with pytest.raises(FetchError):
        get([entry(), lost], tmp_path)
    assert list(lock(tmp_path)) == ["mine.zip"]


def test_look_verifies_and_records_what_was_put_there_by_hand(entry: Callable[..., CatalogEntry], file_server: FileServer, tmp_path: Path) -> None:
    mine, other = entry(), entry(name="other", file="other.zip")
    assert look([mine, other], tmp_path) == [None, None]
    (tmp_path / "mine.zip").write_bytes(ZIP)
    found, missing = look([mine, other], tmp_path)
    assert found is not None
    assert found.state == "there"
    assert missing is None
    assert list(lock(tmp_path)) == ["mine.zip"]
    (tmp_path / "other.zip").write_bytes(ZIP[:-30])
    with pytest.raises(FetchError, match="no whole archive"):
        look([other], tmp_path)
    assert (tmp_path / "other.zip").exists(), "what the user put there is left alone"
    assert not file_server.seen


def test_a_killed_fetch_between_the_name_and_the_record_is_mended(entry: Callable[..., CatalogEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(entry(), tmp_path)
    assert names(tmp_path) == ["mine.zip"]
    assert get(entry(), tmp_path)[0].state == "there"
    assert "mine.zip" in lock(tmp_path)


RECORD = {"source": "a", "address": "b", "sha256": "c", "bytes": 1, "recorded": "d"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": 1}}', '{"format": 1, "files": {"a": {"x": 1}}}'),
        json.dumps({"format": 1, "files": {"a": RECORD | {"bytes": "1"}}}),
        json.dumps({"format": 1, "files": {"a": RECORD | {"sha256": 7}}}),
    ],
)
def test_a_lock_file_that_cannot_be_read_stops_everything(entry: Callable[..., CatalogEntry], file_server: FileServer, tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with pytest.raises(StorageError, match=r"fetch\.lock\.json"):
        get(entry(), tmp_path)
    assert not file_server.seen


def test_one_fetch_a_folder_at_a_time(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    with open(tmp_path / ".fetch.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="Another process is fetching"):
            get(entry(), tmp_path)
    get(entry(), tmp_path)


def test_progress_tells_what_is_done(entry: Callable[..., CatalogEntry], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    fetch([entry()], tmp_path, policy=QUICK, progress=lambda *step: seen.append(step))
    assert list(dict.fromkeys(what for what, _, _ in seen)) == ["mine", "checking mine", "reading mine"]
    assert ("mine", len(ZIP), len(ZIP)) in seen

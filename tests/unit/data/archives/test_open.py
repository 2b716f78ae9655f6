from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scanvit.core.errors import ArchiveError, ScanvitError, SourcesError
from scanvit.data.archives.open import ArchiveLimits, open_archive
from scanvit.data.sources import reads, sources_from_dict

FILES = {"A/one.png": b"1" * 700, "A/two.png": b"2" * 512, "B/three.png": b"3" * 5000, "B/empty.png": b""}
SMALL = ArchiveLimits(members=50, member_bytes=10_000, total_bytes=40_000, ratio=50, ratio_from_bytes=20_000)


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_all(path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    archive = open_archive(path, limits=limits)
    members = list(archive.members())
    data = dict(archive.read({member.path for member in members}))
    assert list(data) == [member.path for member in members], "members and read keep one order"
    return data


KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zip_bytes,
    "tar": tar_bytes,
    "tar.gz": lambda files: gzip.compress(tar_bytes(files)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_known_by_their_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "name.that.says.nothing"
    path.write_bytes(KINDS[kind](FILES))
    assert read_all(path) == FILES
    assert [m.size_bytes for m in open_archive(path).members()] == [len(data) for data in FILES.values()]


def test_a_folder_reads_like_an_archive(tmp_path: Path) -> None:
    assert read_all(write_folder(tmp_path / "f", FILES)) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_only_wanted_members_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind](FILES))
    assert dict(open_archive(path).read({"B/three.png"})) == {"B/three.png": FILES["B/three.png"]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_operating_systems_leave_behind_is_passed_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind]({"__MACOSX/A/._x.png": b"x", "A/.DS_Store": b"x", "A/Thumbs.db": b"x", "A/._x.png": b"x", "./A/x.png": b"y"}))
    assert read_all(path) == {"A/x.png": b"y"}


HOSTILE_NAMES = ["../x.png", "A/../../x.png", "/etc/x.png", "C:/x.png", "C:\\x.png", "..\\x.png", "\\\\host\\x.png", "A/..", "."]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind]({"A/good.png": b"x", name: b"x"}))
    with pytest.raises(ArchiveError) as caught:
        read_all(path)
    assert repr(name) in caught.value.message or name.replace("\\", "/") in caught.value.message


def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zip_bytes({"A/xNyz.png": b"x"}).replace(b"A/xNyz.png", b"A/x\0yz.png"))
    with pytest.raises(ArchiveError):
        read_all(path)


@pytest.mark.parametrize("name", ["../", "/abs/"])
def test_a_hostile_folder_entry_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "zip").write_bytes(zip_bytes({name: b""}))

    def make_folder(info: tarfile.TarInfo) -> None:
        info.type = tarfile.DIRTYPE

    (tmp_path / "tar").write_bytes(tar_bytes({name: b""}, make_folder))
    for kind in ("zip", "tar"):
        with pytest.raises(ArchiveError):
            read_all(tmp_path / kind)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, pack: Callable[[bytes], bytes]) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    (tmp_path / "a").write_bytes(pack(tar_bytes({"A/x.png": b""}, change)))
    with pytest.raises(ArchiveError, match="link or a device"):
        read_all(tmp_path / "a")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        info = zipfile.ZipInfo("A/x.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link or a device"):
        read_all(tmp_path / "a")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"A/x.png": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[data.index(b"PK\x03\x04") + 6] |= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match="encrypted"):
        read_all(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_member_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind]({"A/x.png": b"1", "./A/x.png": b"2"}))
    with pytest.raises(ArchiveError, match="twice"):
        read_all(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "files",
    [
        {"A/long.bin": os.urandom(10_001)},
        {f"A/{i}.bin": os.urandom(9_000) for i in range(5)},
        {f"A/{i}.bin": b"" for i in range(51)},
        {f"A/{i}.bin": bytes(9_999) for i in range(4)},
    ],
    ids=["member", "total", "members", "ratio"],
)
def test_an_absurd_archive_is_refused(tmp_path: Path, kind: str, files: dict[str, bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind](files))
    if kind == "tar" and set(map(len, files.values())) == {9_999}:
        assert read_all(path, SMALL) == files  # nothing is packed in it: there is no ratio
        return
    with pytest.raises(ArchiveError, match="refused"):
        read_all(path, SMALL)


def test_a_bomb_behind_the_end_of_a_tar_is_met_while_draining(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(tar_bytes({"A/x.png": b"x"}) + bytes(3_000_000)))
    with pytest.raises(ArchiveError, match="unpacks to"):
        list(open_archive(tmp_path / "a", limits=SMALL).members())


def test_a_header_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ArchiveError):
        read_all(tmp_path / "a")


def test_a_zip_that_understates_a_size_gives_no_more_than_it_said(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"A/x.png": bytes(9_000)}))
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = data.index(mark) + at
        data[start : start + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError):
        read_all(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_short_anywhere_is_no_archive_that_ended(tmp_path: Path, kind: str) -> None:
    whole = KINDS[kind](FILES)
    # tar pads to 10 KiB after its two blocks of zeros; one of them is proof of the end.
    end = len(whole) if kind != "tar" else sum(512 + -(-len(data) // 512) * 512 for data in FILES.values()) + 512
    path = tmp_path / "a"
    for cut in [*range(0, end, max(end // 60, 1)), end - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ScanvitError):
            read_all(path)


def test_a_damaged_header_in_the_middle_of_a_tar_does_not_end_it(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(FILES))
    data[1024 + 512 + 10] ^= 0xFF  # in the second member's header
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError):
        read_all(tmp_path / "a")


@pytest.mark.parametrize("link", ["A/file.png", "B"])
def test_links_in_a_folder_are_refused(tmp_path: Path, link: str) -> None:
    outside = write_folder(tmp_path / "outside", {"secret.png": b"secret"})
    folder = write_folder(tmp_path / "f", {"A/x.png": b"x"})
    (folder / link).symlink_to(outside if link == "B" else outside / "secret.png")
    with pytest.raises(SourcesError, match=f"{link} is a link") as caught:
        read_all(folder)
    assert "cp -rL" in str(caught.value.hint)
    (tmp_path / "door").symlink_to(outside)
    assert read_all(tmp_path / "door") == {"secret.png": b"secret"}, "the source itself may be a link"


def test_links_that_nobody_would_read_are_left_out(tmp_path: Path) -> None:
    outside = write_folder(tmp_path / "outside", {"secret.png": b"secret"})
    folder = write_folder(tmp_path / "f", {"A/x.png": b"x", "tools/run.sh": b"", ".venv/bin/python": b""})
    (folder / ".#notes.csv").symlink_to("me@host.1234")
    (folder / ".venv" / "lib").symlink_to(outside)
    assert "A/x.png" in read_all(folder), "hidden ones"
    (folder / "tools" / "bin").symlink_to(outside)
    (folder / "latest.png").symlink_to(outside / "secret.png")
    with pytest.raises(SourcesError, match="is a link"):
        read_all(folder)
    rules: dict[str, Any] = {"include": "A/*", "patients": {"file": "who.csv", "image": "i", "patient": "p"}}
    archive = open_archive(folder, reads=reads(sources_from_dict({"sources": [{"name": "s", "path": "f", **rules}]}).sources[0]))
    assert "A/x.png" in {member.path for member in archive.members()}
    assert dict(archive.read({"A/x.png"})) == {"A/x.png": b"x"}
    assert archive.identity() == archive.identity()
    for link in ("A/B", "who.csv"):
        (folder / link).symlink_to(outside)
        with pytest.raises(SourcesError, match=f"{link} is a link"):
            list(archive.members())
        (folder / link).unlink()


def test_what_is_no_file_is_no_member(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {"A/x.png": b"x"})
    os.mkfifo(folder / "A" / "pipe.png")
    assert read_all(folder) == {"A/x.png": b"x"}


def test_a_name_that_is_no_utf8_is_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xe9.png", "wb") as file:
        file.write(b"x")
    assert read_all(folder) == {"\\xe9.png": b"x"}


def test_the_identity_changes_with_the_content(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {"A/x.png": b"x"})
    write_folder(folder, {"pack/train.npy": b"x"})
    before = open_archive(folder).identity()
    part = open_archive(folder, reads=lambda path: path.startswith("A/")).identity()
    assert open_archive(folder).identity() == before
    write_folder(folder, {"pack/val.npy": b"x"})
    assert open_archive(folder).identity() != before
    assert open_archive(folder, reads=lambda path: path.startswith("A/")).identity() == part
    write_folder(folder, {"A/y.png": b"x"})
    assert open_archive(folder, reads=lambda path: path.startswith("A/")).identity() != part


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"just some text, long enough to look at" * 40)
    with pytest.raises(ArchiveError, match=r"a\.zip"):
        open_archive(tmp_path / "a.zip")
    with pytest.raises(SourcesError, match=r"b\.zip"):
        open_archive(tmp_path / "b.zip")

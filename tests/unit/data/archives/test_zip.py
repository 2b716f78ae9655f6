"""Our reader of zip archives against Python's."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest

from scanvit.core.errors import ArchiveError
from scanvit.data.archives.open import open_archive
from scanvit.data.archives.zip import directory

NAMES = ["a/1.png", "a/späte Müdigkeit.png", "b/日本.png", "b/empty.png", "c/folder/"]


def archive(path: Path, *, method: int = zipfile.ZIP_DEFLATED, before: bytes = b"", comment: bytes = b"", wide: bool = False) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.comment = comment
        for number, name in enumerate(NAMES):
            data = b"" if number >= 3 else random.Random(number).randbytes(50_000) + bytes(2_000)
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with file.open(info, "w", force_zip64=wide) as stream:
                stream.write(data)
    path.write_bytes(before + buffer.getvalue())
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\nexit\n"])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65_535])
@pytest.mark.parametrize("wide", [False, True])
def test_the_same_members_as_pythons_reader(tmp_path: Path, method: int, before: bytes, comment: bytes, wide: bool) -> None:
    path = archive(tmp_path / "a.zip", method=method, before=before, comment=comment, wide=wide)
    with zipfile.ZipFile(path) as expected:
        infos = [info for info in expected.infolist() if not info.is_dir()]
        wanted = {info.filename: expected.read(info) for info in infos}
    opened = open_archive(path)
    assert [(member.path, member.size_bytes) for member in opened.members()] == [(name, len(data)) for name, data in wanted.items()]
    assert dict(opened.read(wanted)) == wanted


def test_values_in_the_extra_field(tmp_path: Path) -> None:
    """As Zip64 writes them for archives beyond 4 GiB: the number of entries, their sizes and offsets."""
    raw = bytearray(archive(tmp_path / "small.zip", method=zipfile.ZIP_STORED).read_bytes())
    end = raw.rindex(b"PK\x05\x06")
    length, start = struct.unpack_from("<2L", raw, end + 12)
    entry = raw[start:]
    size, offset = struct.unpack_from("<L", entry, 24)[0], struct.unpack_from("<L", entry, 42)[0]
    name_length = struct.unpack_from("<H", entry, 28)[0]
    extra = struct.pack("<2H3Q", 1, 24, size, size, offset)
    struct.pack_into("<2L", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, len(extra))
    struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
    table = entry[: 46 + name_length] + extra + raw[start + 46 + name_length : end]
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(NAMES), len(NAMES), len(table), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(table), 1)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "wide.zip").write_bytes(bytes(raw[:start] + table) + end64 + locator + tail)
    assert length < len(table)
    small, wide = open_archive(tmp_path / "small.zip"), open_archive(tmp_path / "wide.zip")
    assert list(small.members()) == list(wide.members())
    assert list(small.read(NAMES)) == list(wide.read(NAMES))
    with zipfile.ZipFile(tmp_path / "wide.zip") as python:
        assert python.testzip() is None


def test_a_member_under_another_name_than_said_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    path.write_bytes(path.read_bytes().replace(b"a/1.png", b"a/2.png", 1))
    with pytest.raises(ArchiveError, match="does not stand where"):
        list(open_archive(path).read({"a/1.png"}))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArchiveError, match="another checksum"):
        list(open_archive(path).read(NAMES))


def test_other_methods_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="method 12"):
        list(open_archive(archive(tmp_path / "a.zip", method=zipfile.ZIP_BZIP2)).members())


def test_the_table_of_contents_is_read_line_by_line(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    first = next(directory(path))
    assert (first.name, first.size_bytes, first.offset) == ("a/1.png", 52_000, 0)

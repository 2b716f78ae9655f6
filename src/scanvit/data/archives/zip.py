"""Zip archives. The table of contents is read entry by entry, where Python's zipfile would hold 0.6 kB a member.

After the specification APPNOTE 6.3.10, sections 4.3 and 4.4: stored and deflated members, with or without Zip64.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...core.errors import ArchiveError
from .base import Archive, ArchiveLimits, Member, MemberNames, reading, refuse

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF
_ZIP64 = 1
_ENCRYPTED = 0x1 | 0x40
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table of contents."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    mode: int
    """Unix's, or 0."""
    offset: int
    """Of the member's own header in the file."""


def directory(path: Path) -> Iterator[Entry]:
    """The table of contents. Raises zipfile.BadZipFile, or what ``base.BROKEN`` names, for a damaged one."""
    with open(path, "rb") as file:
        start, end, shift = _find_directory(file)
        file.seek(start)
        while file.tell() < end:
            yield _read_entry(file, shift)
        if file.tell() != end:
            raise zipfile.BadZipFile("its table of contents is damaged")


class ZipArchive(Archive):
    def _list(self, names: MemberNames) -> Iterator[Member]:
        with reading(self.path):
            for path, entry in self._entries(names):
                yield Member(path, entry.size_bytes)

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        with reading(self.path), open(self.path, "rb") as file:
            for path, entry in self._entries(MemberNames(self.limits, ())):
                if path in wanted:
                    yield path, _unpack(file, entry, path, self.limits)

    def _entries(self, names: MemberNames) -> Iterator[tuple[str, Entry]]:
        for entry in directory(self.path):
            if entry.name.endswith("/") and "\0" not in entry.name:
                names.check(entry.name)
                continue
            if entry.mode & 0o170000 not in (0, 0o100000):
                raise refuse(f"{entry.name!r} is a link or a device", self.path)
            if entry.flags & _ENCRYPTED:
                raise ArchiveError(f"{entry.name!r} in {self.path} is encrypted.", hint="Unpack the archive with its password into a folder first.")
            if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{entry.name!r} in {self.path} is packed by method {entry.method}.", hint="Unpack the archive into a folder first.")
            if path := names.accept(entry.name, entry.size_bytes):
                self.limits.check_ratio(entry.size_bytes, entry.packed_bytes, f"{path!r} in {self.path}")
                yield path, entry
        self.limits.check_ratio(names.total_bytes, self.path.stat().st_size, str(self.path))


def _find_directory(file: IO[bytes]) -> tuple[int, int, int]:
    """(start, end, what is to be added to all offsets since something stands before the archive)."""
    size_bytes = file.seek(0, 2)
    file.seek(max(0, size_bytes - _END.size - _LONGEST_COMMENT))
    base, tail = file.tell(), file.read()
    position = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    if position < 0:
        raise zipfile.BadZipFile("it has no table of contents")
    *_, length, offset, _ = _END.unpack_from(tail, position)
    end = base + position
    if position >= _LOCATOR.size + _END64.size and tail[position - _LOCATOR.size :].startswith(b"PK\x06\x07"):
        fields = _END64.unpack_from(tail, position - _LOCATOR.size - _END64.size)
        if fields[0] == b"PK\x06\x06":
            end, (length, offset) = end - _LOCATOR.size - _END64.size, fields[-2:]
    if length + offset > end:
        raise zipfile.BadZipFile("its table of contents is cut short")
    return end - length, end, end - length - offset


def _read_entry(file: IO[bytes], shift: int) -> Entry:
    fields = _ENTRY.unpack(_exactly(file, _ENTRY.size))
    magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length, _, _, attributes, offset = fields
    if magic != b"PK\x01\x02":
        raise zipfile.BadZipFile("its table of contents is damaged")
    raw, extra = _exactly(file, name_length), _exactly(file, extra_length)
    _exactly(file, comment_length)
    # Values that do not fit stand in the extra field, in this order, and only those.
    wide = iter(_zip64(extra))
    size, packed, offset = (next(wide, value) if value == _IN_EXTRA else value for value in (size, packed, offset))
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    return Entry(raw, name, flags, method, crc, packed, size, attributes >> 16, offset + shift)


def _zip64(extra: bytes) -> tuple[int, ...]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64:
            return struct.unpack(f"<{length // 8}Q", extra[position + 4 :][: length // 8 * 8])
        position += 4 + length
    return ()


def _unpack(file: IO[bytes], entry: Entry, path: str, limits: ArchiveLimits) -> bytes:
    file.seek(entry.offset)
    magic, *_, name_length, extra_length = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    if magic != b"PK\x03\x04" or _exactly(file, name_length) != entry.raw_name:
        raise zipfile.BadZipFile(f"{path!r} does not stand where its table of contents says")
    _exactly(file, extra_length)
    if entry.packed_bytes > limits.member_bytes:
        raise refuse(f"{path!r} has {entry.packed_bytes:,} packed bytes")
    data = _exactly(file, entry.packed_bytes)
    if entry.method == zipfile.ZIP_DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        # One byte more than there should be shows both: that there is more, and that the stream has come to its end.
        data = stream.decompress(data, entry.size_bytes + 1)
        if len(data) <= entry.size_bytes and not stream.eof:
            raise zipfile.BadZipFile(f"{path!r} ends early")
    if len(data) > entry.size_bytes:
        raise refuse(f"{path!r} unpacks to more than the {entry.size_bytes:,} bytes that it may")
    if len(data) != entry.size_bytes or zlib.crc32(data) != entry.crc:
        raise zipfile.BadZipFile(f"{path!r} has another checksum than it should")
    return data


def _exactly(file: IO[bytes], size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise EOFError("it ends early")
    return data

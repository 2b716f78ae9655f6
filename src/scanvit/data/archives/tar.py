"""Tar archives, plain or gzip, read from their beginning to their end without unpacking."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

from ...core.errors import ArchiveError
from .base import BROKEN, Archive, ArchiveLimits, Member, MemberNames, read_capped, reading, refuse

_CHUNK_BYTES = 1 << 20


class TarArchive(Archive):
    """Plain or gzip. A compressed one is read from its beginning each time, up to the checksum at its end."""

    def _list(self, names: MemberNames) -> Iterator[Member]:
        return (Member(path, info.size) for path, info, _ in self._walk(names))

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, info, archive in self._walk(MemberNames(self.limits, ())):
            if path in wanted:
                with reading(self.path):
                    stream = archive.extractfile(info)
                    assert stream is not None  # _walk lets regular files through alone
                    data = read_capped(stream, path, info.size, self.limits)
                yield path, data

    def _walk(self, names: MemberNames) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
        with reading(self.path), _open_tar(self.path) as file:
            stream: Any = _CountedStream(file, self.path, self.limits)
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo) as archive:
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header: memory would grow with the archive
                    if info.isdir():
                        names.check(info.name)
                    elif not info.isreg() or info.issparse():
                        raise refuse(f"{info.name!r} is a link or a device", self.path)
                    elif path := names.accept(info.name, info.size):
                        yield path, info, archive
                while stream.read(_CHUNK_BYTES):  # gzip checks length and CRC at its end only
                    pass


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header after the first for the end of the archive; here only the block of zeros ends it."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as cause:
            raise ArchiveError(f"The archive is cut short or damaged at byte {tarfile_.offset:,}: {cause}.", hint="Fetch it again.") from None


class _CountedStream:
    """Counts the bytes that really come out against the limits, whatever the headers say."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path, limits: ArchiveLimits) -> None:
        self._stream, self._path, self._limits = stream, path, limits
        self._packed_bytes, self._unpacked_bytes = path.stat().st_size, 0

    def read(self, size: int = -1) -> bytes:
        if size > self._limits.member_bytes + _CHUNK_BYTES:  # a header may claim any length for the one after it
            raise refuse(f"a header is {size:,} bytes long", self._path)
        data = self._stream.read(size)
        self._unpacked_bytes += len(data)
        self._limits.check_ratio(self._unpacked_bytes, self._packed_bytes, str(self._path))
        return data

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        # Going forward in a gzip stream is reading: step by step, so that a bomb in a skipped member meets the limits too.
        if isinstance(self._stream, gzip.GzipFile) and whence == 0:
            while offset - self.tell() > _CHUNK_BYTES and self.read(_CHUNK_BYTES):
                pass
        return self._stream.seek(offset, whence)


def is_tar(path: Path) -> bool:
    try:
        with _open_tar(path) as file:
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (tarfile.HeaderError, *BROKEN):
        return False
    return True


def _open_tar(path: Path) -> IO[bytes] | gzip.GzipFile:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")

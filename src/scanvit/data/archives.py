"""Folders, zip and tar archives and MedMNIST files, read member by member without unpacking anything to disk.

Every archive is hostile until read: names that leave the folder, links, devices, encrypted or repeated members, absurd sizes and
archives that end early raise ArchiveError, naming the member.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..core.errors import ArchiveError, SourcesError
from ..storage.workplace import WORK_FOLDER, is_unfinished

# What the readers of zip, tar, gzip and npy raise for damaged bytes.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    LookupError,
    OverflowError,
)
_SYSTEM_FILES = {".ds_store", "thumbs.db", "desktop.ini"}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What no honest archive of images comes near."""

    members: int = 5_000_000
    member_bytes: int = 512 << 20
    """Unpacked size of one member."""
    total_bytes: int = 1 << 40
    """Unpacked size of all members."""
    ratio: float = 200.0
    """Unpacked over packed size. JPEG and PNG hardly shrink; deflate's own limit is about 1030."""
    ratio_from_bytes: int = 16 << 20
    """Unpacked size below which the ratio is not looked at."""

    def check_ratio(self, unpacked_bytes: int, packed_bytes: int, name: str) -> None:
        if unpacked_bytes > self.ratio_from_bytes and unpacked_bytes > self.ratio * max(packed_bytes, 1):
            raise _refuse(f"{name} unpacks to {unpacked_bytes:,} bytes or more from {packed_bytes:,}")


@dataclass(frozen=True, slots=True)
class Member:
    path: str
    """Inside the archive, with forward slashes, relative, unique."""
    size_bytes: int
    """As the archive says; ``read`` counts what really comes."""


class Archive(ABC):
    """``members`` and ``read`` go through the members in the same order, at every call, and hold one at a time."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path = path
        self.limits = limits

    def members(self) -> Iterator[Member]:
        """All regular members. Raises ArchiveError for a hostile or broken archive, at its end at the latest."""
        names = MemberNames(self.limits)
        yield from self._list(names)
        if suspects := names.repeated():
            for _ in self._list(MemberNames(self.limits, suspects)):
                pass

    @abstractmethod
    def _list(self, names: MemberNames) -> Iterator[Member]: ...

    @abstractmethod
    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        """(path, bytes) of the wanted members."""

    def identity(self) -> str:
        """Changes when the archive was replaced: path, size and time of change."""
        stat = self.path.stat()
        return f"{self.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def open_archive(path: Path, *, limits: ArchiveLimits | None = None) -> Archive:
    """By content, not by name. Raises SourcesError where there is nothing, ArchiveError for a file that is no archive."""
    from .medmnist import MedMnistFile, is_medmnist

    limits = limits or ArchiveLimits()
    if path.is_dir():
        return Folder(path, limits)
    if not path.is_file():
        raise SourcesError(f"There is no file or folder {path}.", hint="Check the path in the sources file, or give --root.")
    with reading(path):
        if zipfile.is_zipfile(path):
            return MedMnistFile(path, limits) if is_medmnist(path) else ZipArchive(path, limits)
        if _is_tar(path):
            return TarArchive(path, limits)
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ArchiveError(f"{path} is a zip archive that is cut short: its table of contents is missing.", hint="Fetch it again.")
    raise ArchiveError(f"{path} is no folder, zip or tar archive, or MedMNIST .npz (or it is broken).", hint="Unpack other formats into a folder first.")


class Folder(Archive):
    """Links are not followed and not read: nothing outside the folder gets in."""

    def _list(self, names: MemberNames) -> Iterator[Member]:
        return (Member(path, size) for path, _, size, _ in self._files(names))

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, file, size_bytes, _ in self._files():
            if path in wanted:
                with reading(self.path), _open_plain(file) as stream:
                    data = _read_capped(stream, path, size_bytes, self.limits)
                yield path, data

    def identity(self) -> str:
        listing = hashlib.sha256()
        for path, _, size, mtime in self._files():
            listing.update(f"{path}|{size}|{mtime}\n".encode())
        return f"{self.path.resolve()}|{listing.hexdigest()}"

    def _files(self, names: MemberNames | None = None) -> Iterator[tuple[str, str, int, int]]:
        """(path, real path, size, time of change in ns) in the order of the paths."""
        names = names or MemberNames(self.limits, ())
        with reading(self.path):
            for folder, folders, files in os.walk(self.path, followlinks=False, onerror=_raise):
                folders.sort()
                if WORK_FOLDER in folders:
                    if is_unfinished(Path(folder)):
                        raise SourcesError(f"{folder} holds an unfinished pull.", hint=f"Repeat the pull, or remove {os.path.join(folder, WORK_FOLDER)}.")
                    folders.remove(WORK_FOLDER)
                for name in sorted(files):
                    file = os.path.join(folder, name)
                    stat = os.lstat(file)
                    is_plain = (stat.st_mode & 0o170000) == 0o100000
                    # Sizes are not judged: nothing is packed here.
                    if is_plain and (path := names.accept(os.path.relpath(file, self.path), 0, backslash=False)):
                        yield path, file, stat.st_size, stat.st_mtime_ns


class ZipArchive(Archive):
    def _list(self, names: MemberNames) -> Iterator[Member]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for path, info in self._infos(archive, names):
                yield Member(path, info.file_size)

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for path, info in self._infos(archive, MemberNames(self.limits, ())):
                if path in wanted:
                    with archive.open(info) as stream:
                        data = _read_capped(stream, path, info.file_size, self.limits)
                    yield path, data

    def _infos(self, archive: zipfile.ZipFile, names: MemberNames) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for info in archive.infolist():
            # orig_filename: zipfile itself cuts filename at a NUL.
            if info.is_dir() and "\0" not in info.orig_filename:
                names.check(info.filename)
                continue
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise _refuse(f"{info.filename!r} is a link or a device", self.path)
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{info.filename!r} in {self.path} is encrypted.", hint="Unpack the archive with its password into a folder first.")
            if path := names.accept(info.orig_filename, info.file_size):
                self.limits.check_ratio(info.file_size, info.compress_size, f"{path!r} in {self.path}")
                yield path, info
        self.limits.check_ratio(names.total_bytes, self.path.stat().st_size, str(self.path))


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
                    data = _read_capped(stream, path, info.size, self.limits)
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
                        raise _refuse(f"{info.name!r} is a link or a device", self.path)
                    elif path := names.accept(info.name, info.size):
                        yield path, info, archive
                while stream.read(_CHUNK_BYTES):  # gzip checks length and CRC at its end only
                    pass


class MemberNames:
    """Judges names and sizes one after another.

    Names that stand twice are found in two walks, so that a million names need not be held: the first keeps 64 bits of each (``repeated``),
    the second only the names that these bits cast suspicion on.
    """

    def __init__(self, limits: ArchiveLimits, suspects: Container[int] | None = None) -> None:
        """``suspects``: hashes of names; those alone are looked at again. None for the first walk."""
        self._limits, self._suspects = limits, suspects
        self._hashes = array("q")
        self._seen: set[str] = set()
        self._members = self.total_bytes = 0

    def repeated(self) -> set[int]:
        hashes = np.array(self._hashes, np.int64)
        self._hashes = array("q")
        hashes.sort()
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())

    def check(self, name: str, *, backslash: bool = True) -> str:
        """The name with forward slashes. Raises ArchiveError where it would leave the folder."""
        # Bytes that are no UTF-8 arrive as lone surrogates, which neither JSON nor parquet takes.
        path = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if backslash:
            path = path.replace("\\", "/")
        parts = path.split("/")
        if "\0" in path or path.startswith("/") or ".." in parts or (backslash and len(parts[0]) > 1 and parts[0][1] == ":"):
            raise _refuse(f"{name!r} leads outside the archive")
        return "/".join(part for part in parts if part not in ("", "."))

    def accept(self, name: str, size_bytes: int, *, backslash: bool = True) -> str | None:
        """The path, or None for what an operating system leaves behind. Raises ArchiveError."""
        path = self.check(name, backslash=backslash)
        parts = path.split("/")
        if not path:
            raise _refuse(f"a member has the empty name {name!r}")
        if self._suspects is None:
            self._hashes.append(hash(path))
        elif hash(path) in self._suspects:
            if path in self._seen:
                raise _refuse(f"{name!r} stands in it twice")
            self._seen.add(path)
        self._members += 1
        self.total_bytes += size_bytes
        if size_bytes > self._limits.member_bytes or size_bytes < 0:
            raise _refuse(f"{path!r} unpacks to {size_bytes:,} bytes")
        if self.total_bytes > self._limits.total_bytes:
            raise _refuse(f"with {path!r} it unpacks to {self.total_bytes:,} bytes")
        if self._members > self._limits.members:
            raise _refuse(f"with {path!r} it holds more than {self._limits.members:,} members")
        return None if "__MACOSX" in parts or parts[-1].lower() in _SYSTEM_FILES or parts[-1].startswith("._") else path


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
            raise _refuse(f"a header is {size:,} bytes long", self._path)
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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the readers of zip, gzip and tar raise for broken files into ArchiveError."""
    try:
        yield
    except zipfile.LargeZipFile:
        raise
    except _BROKEN as cause:
        raise ArchiveError(f"{path} is broken: {str(cause) or type(cause).__name__}.", hint="Fetch it again; it may be cut short.") from None
    except RuntimeError as cause:  # zipfile's answer to encryption
        raise ArchiveError(f"{path} cannot be unpacked: {cause}.", hint="Unpack it into a folder first.") from None
    except OSError as cause:
        raise SourcesError(f"{path} cannot be read: {cause.strerror or cause}.", hint="Check that it is there and that you may read it.") from None


def _is_tar(path: Path) -> bool:
    try:
        with _open_tar(path) as file:
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (tarfile.HeaderError, *_BROKEN):
        return False
    return True


def _open_tar(path: Path) -> IO[bytes] | gzip.GzipFile:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")


def _open_plain(file: str) -> IO[bytes]:
    # O_NOFOLLOW: a file may be swapped for a link between listing and reading.
    return os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _read_capped(stream: IO[bytes], path: str, size_bytes: int, limits: ArchiveLimits) -> bytes:
    expected_bytes = min(size_bytes, limits.member_bytes)
    data = stream.read(expected_bytes + 1)
    if len(data) > expected_bytes:
        raise _refuse(f"{path!r} unpacks to more than the {expected_bytes:,} bytes that it may")
    return data


def _refuse(what: str, path: Path | None = None) -> ArchiveError:
    where = f" ({path})" if path else ""
    return ArchiveError(f"The archive is refused: {what}{where}.", hint="Do not unpack it by hand either before you know where it comes from.")


def _raise(error: OSError) -> None:
    raise error

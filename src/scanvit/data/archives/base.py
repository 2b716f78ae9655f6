"""What all archives have in common: hostile until read. Names, sizes and ratios are judged member by member."""

from __future__ import annotations

import gzip
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
from typing import IO

import numpy as np

from ...core.errors import ArchiveError, SourcesError

# What the readers of zip, tar, gzip and npy raise for damaged bytes.
BROKEN = (
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
            raise refuse(f"{name} unpacks to {unpacked_bytes:,} bytes or more from {packed_bytes:,}")


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
            raise refuse(f"{name!r} leads outside the archive")
        return "/".join(part for part in parts if part not in ("", "."))

    def accept(self, name: str, size_bytes: int, *, backslash: bool = True) -> str | None:
        """The path, or None for what an operating system leaves behind. Raises ArchiveError."""
        path = self.check(name, backslash=backslash)
        parts = path.split("/")
        if not path:
            raise refuse(f"a member has the empty name {name!r}")
        if self._suspects is None:
            self._hashes.append(hash(path))
        elif hash(path) in self._suspects:
            if path in self._seen:
                raise refuse(f"{name!r} stands in it twice")
            self._seen.add(path)
        self._members += 1
        self.total_bytes += size_bytes
        if size_bytes > self._limits.member_bytes or size_bytes < 0:
            raise refuse(f"{path!r} unpacks to {size_bytes:,} bytes")
        if self.total_bytes > self._limits.total_bytes:
            raise refuse(f"with {path!r} it unpacks to {self.total_bytes:,} bytes")
        if self._members > self._limits.members:
            raise refuse(f"with {path!r} it holds more than {self._limits.members:,} members")
        return None if "__MACOSX" in parts or parts[-1].lower() in _SYSTEM_FILES or parts[-1].startswith("._") else path


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the readers of zip, gzip and tar raise for broken files into ArchiveError."""
    try:
        yield
    except zipfile.LargeZipFile:
        raise
    except BROKEN as cause:
        raise ArchiveError(f"{path} is broken: {str(cause) or type(cause).__name__}.", hint="Fetch it again; it may be cut short.") from None
    except RuntimeError as cause:  # zipfile's answer to encryption
        raise ArchiveError(f"{path} cannot be unpacked: {cause}.", hint="Unpack it into a folder first.") from None
    except OSError as cause:
        raise SourcesError(f"{path} cannot be read: {cause.strerror or cause}.", hint="Check that it is there and that you may read it.") from None


def read_capped(stream: IO[bytes], path: str, size_bytes: int, limits: ArchiveLimits) -> bytes:
    expected_bytes = min(size_bytes, limits.member_bytes)
    data = stream.read(expected_bytes + 1)
    if len(data) > expected_bytes:
        raise refuse(f"{path!r} unpacks to more than the {expected_bytes:,} bytes that it may")
    return data


def refuse(what: str, path: Path | None = None) -> ArchiveError:
    where = f" ({path})" if path else ""
    return ArchiveError(f"The archive is refused: {what}{where}.", hint="Do not unpack it by hand either before you know where it comes from.")

"""Folders in an object store, their objects, and which names of objects may become files.

A remote is written ``swift:CONTAINER/FOLDER`` or ``s3:BUCKET/FOLDER``; ``s3://BUCKET/FOLDER`` means the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..core.errors import StorageError
from .workplace import WORK_FOLDER

KINDS = ("swift", "s3")
_MAX_PART_BYTES = 255  # NAME_MAX of the usual file systems
_MAX_NAME_BYTES = 1024  # of a key in S3 and of a name in Swift
# rclone shows what no file may be called by these: \u2400..\u2421 for control characters, \uff0f for a slash, \uff0e for a dot, and \u201b
# before such a character that is meant. Refused where they are meant too: nobody's images need them, and two names would become one.
_STAND_INS = frozenset(map(chr, range(0x2400, 0x2422))) | {"\uff0f", "\u201b"}
_NO_PARTS = frozenset({"", ".", "..", "\uff0e", "\uff0e\uff0e", WORK_FOLDER})


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A folder of a bucket (Swift says container). ``prefix`` has no slash at either end; "" is the whole bucket, ``bucket`` "" the whole store."""

    kind: str
    bucket: str
    prefix: str = ""

    @property
    def path(self) -> str:
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket

    @property
    def parent(self) -> Remote:
        return replace(self, prefix=self.prefix.rpartition("/")[0])

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True, kw_only=True)
class RemoteObject:
    """``name`` is relative to the listed folder; ``md5`` (32 hexadecimal digits) is None where the store does not know it, as of most objects
    that were uploaded in parts."""

    name: str
    size_bytes: int
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All objects below ``folder``, sorted by name."""

    folder: Remote
    objects: tuple[RemoteObject, ...]


class Store(Protocol):
    """A way to the objects of one remote. Every method raises StorageError naming the remote and the cause; none tells a secret."""

    remote: Remote

    def listing(self, *, checksums: bool) -> Listing:
        """Everything below the remote, or the one object that it names. A folder that is not there is empty; a bucket that is not raises."""

    def top(self) -> list[str]:
        """Names one level below the remote (of buckets, where it names none)."""

    def create_bucket(self) -> None:
        """Nothing happens where it exists."""

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        """Write each object to ``target``/name. After an error, whole and cut files may stand there. ``on_bytes`` is told how many have come."""

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        """Upload ``source``/name for each name. An object appears when it is whole."""

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        """{name: MD5} by reading the objects."""


def parse_remote(text: str, *, whole_store: bool = False) -> Remote:
    """Raises StorageError for anything but KIND:BUCKET[/FOLDER]; with ``whole_store`` also KIND: is one."""
    kind, colon, path = text.partition(":")
    if not colon or kind not in KINDS:
        raise StorageError(f"{text!r} is no remote.", hint="Write swift:CONTAINER/FOLDER or s3:BUCKET/FOLDER; the remote comes first.")
    bucket, _, prefix = path.strip("/").partition("/")
    if not bucket and not whole_store:
        raise StorageError(f"{text!r} names no bucket.", hint=f"Write {kind}:BUCKET or {kind}:BUCKET/FOLDER; scanvit data ls {kind}: lists the buckets.")
    for name in filter(None, (bucket, prefix)):
        _check_name(name, f"{text!r} names")
    return Remote(kind=kind, bucket=bucket, prefix=prefix)


def check_names(names: Iterable[str], *, where: str, apart: bool = False) -> None:
    """Raise StorageError where a name cannot be a file on every machine, or where two of them would be one file.

    Refused: absolute names, ``.``, ``..`` and empty parts, control characters and NUL, parts over 255 or names over 1,024 bytes, names
    that differ only in case or in Unicode form (also of their folders; unless ``apart``: for a file system that keeps them apart), and an
    object that is called like a folder.
    """
    fold = str if apart else _fold
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        _check_name(name, f"{where} holds")
        if (other := files.setdefault(fold(name), name)) != name:
            raise _collision(where, other, name)
        parent = name.rpartition("/")[0]
        while parent and folders.get(fold(parent)) != parent:
            if (other := folders.setdefault(fold(parent), parent)) != parent:
                raise _collision(where, other, parent)
            parent = parent.rpartition("/")[0]
    for folded in files.keys() & folders.keys():
        raise _collision(where, files[folded], f"{folders[folded]}/")


def _check_name(name: str, subject: str) -> None:
    shown = repr(name if len(name) <= 100 else f"{name[:100]}...")
    hint = "Rename it in the store, or name another folder. Nothing was written."
    if any(part in _NO_PARTS for part in name.split("/")):
        raise StorageError(f"{subject} {shown}, which leaves its folder or has a part that no file may have.", hint=hint)
    if any(c in _STAND_INS or unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise StorageError(f"{subject} {shown}, which has a character that a file name cannot have everywhere.", hint=hint)
    if len(name.encode()) > _MAX_NAME_BYTES or any(len(part.encode()) > _MAX_PART_BYTES for part in name.split("/")):
        raise StorageError(f"{subject} a name of {len(name.encode()):,} bytes, which is too long for a file: {shown}.", hint=hint)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _collision(where: str, first: str, second: str) -> StorageError:
    return StorageError(
        f"{where} holds both {first!r} and {second!r}, which cannot stand side by side on every file system.",
        hint="Rename one of them, or take the two folders one by one. Nothing was written.",
    )

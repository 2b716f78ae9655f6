"""Folders, zip and tar archives and MedMNIST files, read member by member without unpacking anything to disk.

Every archive is hostile until read: names that leave the folder, links, devices, encrypted or repeated members, absurd sizes and
archives that end early raise ArchiveError, naming the member.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import IO

from ...core.errors import ArchiveError, SourcesError
from ...storage.workplace import WORK_FOLDER, is_unfinished
from .base import Archive, ArchiveLimits, Member, MemberNames, read_capped, reading
from .medmnist import MedMnistFile, is_medmnist
from .tar import TarArchive, is_tar
from .zip import ZipArchive

__all__ = ["Archive", "ArchiveLimits", "open_archive"]


def open_archive(path: Path, *, limits: ArchiveLimits | None = None, reads: Callable[[str], bool] = lambda path: True) -> Archive:
    """By content, not by name. ``reads``: what of a folder counts (``sources.reads``).

    Raises SourcesError where there is nothing, ArchiveError for a file that is no archive.
    """
    limits = limits or ArchiveLimits()
    if os.path.isdir(path):
        return Folder(path, limits, reads)
    if not os.path.isfile(path):  # pathlib would raise for a name that is too long
        raise SourcesError(f"There is no file or folder {path}.", hint="Check the path in the sources file, or give --root.")
    with reading(path):
        if zipfile.is_zipfile(path):
            return MedMnistFile(path, limits) if is_medmnist(path) else ZipArchive(path, limits)
        if is_tar(path):
            return TarArchive(path, limits)
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ArchiveError(f"{path} is a zip archive that is cut short: its table of contents is missing.", hint="Fetch it again.")
    raise ArchiveError(f"{path} is no folder, zip or tar archive, or MedMNIST .npz (or it is broken).", hint="Unpack other formats into a folder first.")


class Folder(Archive):
    """Links are refused, as in archives: nothing outside the folder gets in, and no image is left out without a word. Those that nobody would
    read, as they are hidden or not in ``reads``, are left out."""

    def __init__(self, path: Path, limits: ArchiveLimits, reads: Callable[[str], bool]) -> None:
        super().__init__(path, limits)
        self._reads = reads

    def _list(self, names: MemberNames) -> Iterator[Member]:
        return (Member(path, size) for path, _, size, _ in self._files(self._reads, names))

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, file, size_bytes, _ in self._files(wanted.__contains__):
            if path in wanted:
                with reading(self.path), _open_plain(file) as stream:
                    data = read_capped(stream, path, size_bytes, self.limits)
                yield path, data

    def identity(self) -> str:
        listing = hashlib.sha256()
        for path, _, size, mtime in self._files(self._reads):
            if self._reads(path):  # a pack that is made in the folder changes what else lies there
                listing.update(f"{path}|{size}|{mtime}\n".encode())
        return f"{self.path.resolve()}|{listing.hexdigest()}"

    def _files(self, reads: Callable[[str], bool], names: MemberNames | None = None) -> Iterator[tuple[str, str, int, int]]:
        """(path, real path, size, time of change in ns) in the order of the paths."""
        names = names or MemberNames(self.limits, ())
        with reading(self.path):
            for folder, folders, files in os.walk(self.path, followlinks=False, onerror=_raise):
                folders.sort()
                if WORK_FOLDER in folders:
                    if is_unfinished(Path(folder)):
                        raise SourcesError(f"{folder} holds an unfinished pull.", hint=f"Repeat the pull, or remove {os.path.join(folder, WORK_FOLDER)}.")
                    folders.remove(WORK_FOLDER)
                for link in (os.path.join(folder, name) for name in folders):
                    if os.path.islink(link) and _counts(names.check(os.path.relpath(link, self.path), backslash=False) + "/", reads):
                        raise _link(link)
                for name in sorted(files):
                    file = os.path.join(folder, name)
                    try:
                        stat = os.lstat(file)
                    except FileNotFoundError:  # as do the unfinished files of a pack that is made beside what is read
                        if reads(os.path.relpath(file, self.path)):
                            raise
                        continue
                    if S_ISLNK(stat.st_mode) and _counts(names.check(os.path.relpath(file, self.path), backslash=False), reads):
                        raise _link(file)
                    # Sizes are not judged: nothing is packed here.
                    if S_ISREG(stat.st_mode) and (path := names.accept(os.path.relpath(file, self.path), 0, backslash=False)):
                        yield path, file, stat.st_size, stat.st_mtime_ns


def _counts(path: str, reads: Callable[[str], bool]) -> bool:
    return not any(part.startswith(".") for part in path.split("/")) and reads(path)


def _link(path: str) -> SourcesError:
    hint = "Put what it leads to in its place (cp -rL copies a folder so), or name that as a source of its own."
    return SourcesError(f"{path} is a link, and links inside a source are not followed.", hint=hint)


def _open_plain(file: str) -> IO[bytes]:
    # O_NOFOLLOW: a file may be swapped for a link between listing and reading.
    return os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _raise(error: OSError) -> None:
    raise error

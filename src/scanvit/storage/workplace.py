"""The hidden folder inside a destination in which copies arrive before they take their names. One process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import StorageError
from .atomic import storage_errors

WORK_FOLDER = ".scanvit-transfer"
_log = logging.getLogger(__name__)


def put_in_place(staging: Path, folder: Path, names: Iterable[str]) -> None:
    os.sync()  # once for all: whatever happens now, a name never leads to content that is not on the disk
    with storage_errors(folder):
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir() and not target.is_symlink():
                raise StorageError(f"{target} is a folder, where the store has an object.", hint="Move the folder away, or pull into another one.")
            os.replace(staging / name, target)


def is_unfinished(folder: Path) -> bool:
    """Whether a pull into ``folder`` has begun to copy and has not ended. (One that only compares leaves the folder as it is.)"""
    return any(path.is_file() for path in (folder / WORK_FOLDER / "files").rglob("*"))


def tells_apart(folder: Path) -> bool:
    """Whether the file system of ``folder``, which is there, keeps names that differ in case or Unicode form alone as two files."""
    with storage_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".probe.") as place:
        Path(place, "\u00e9").touch()
        return not Path(place, "\u00c9").exists() and not Path(place, "e\u0301").exists()


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, so that renaming out of it never copies. Held by one process at a time; gone after a success."""
    work = folder / WORK_FOLDER
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(work)
    try:
        with storage_errors(folder):
            (work / "files").mkdir(exist_ok=True)
        yield work / "files"
        shutil.rmtree(work)  # while it is held: who waits finds that its lock is no longer there, and makes a new one
    finally:
        os.close(descriptor)


def _lock(work: Path) -> int:
    """Waits for as long as another process holds it. rclone does not inherit it, but ends with the process that does."""
    waited = False
    while True:
        if work.is_symlink():
            raise StorageError(f"{work} is a link.", hint="Remove it.")
        work.mkdir(exist_ok=True)
        try:
            descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the other process has just removed the folder
            continue
        if not _try_lock(descriptor):
            if not waited:
                _log.warning("Another process is pulling into %s: waiting for it.", work.parent)
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(descriptor, work / "lock"):
            return descriptor
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: nobody has removed, moved or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """A link inside the destination would lead the copy elsewhere."""
    parents = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    for parent in sorted(parents):
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            raise StorageError(f"{parent} is a link or a file, where the store has a folder.", hint="Move it away, or pull into another folder.")

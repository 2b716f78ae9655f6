"""Copies between a folder and an object store that are whole, checked and safe to repeat.

``pull`` first lists the store and judges every name, copies what is missing into a hidden folder inside the destination, compares each file's MD5
with the store's, flushes, and only then renames: a file that stands under its name is whole. ``push`` compares in the same way after the upload;
a store shows an object only when it is whole. Both compare content before they copy, so that a second call copies what the first did not get to.
An object without an MD5 (uploaded in parts by a program that left none) is compared by reading it again.

Nothing is deleted: files and objects that only the receiving side has stay. A file of another content under the same name is replaced.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import NoSpaceError, StorageError
from .credentials import credentials_from
from .failures import missing
from .rclone import Limits, Rclone, find_rclone, rclone_or_fail
from .remote import Listing, Remote, RemoteObject, Store, check_names
from .workplace import WORK_FOLDER, is_unfinished, put_in_place, refuse_links, workplace

ENGINES = ("auto", "rclone", "pyarrow", "swiftclient")
_WITHOUT_RCLONE = {"s3": "pyarrow", "swift": "swiftclient"}
Progress = Callable[[str, int, int], None]  # (stage, done, total); the stage "Copying" counts bytes, the others files


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a pull or push did. ``objects`` and ``size_bytes`` count what the source has, ``copied`` and ``copied_bytes`` what had to move."""

    objects: int
    size_bytes: int
    copied: int
    copied_bytes: int
    empty_folders: int = 0
    time_s: float


def open_store(remote: Remote, environment: Mapping[str, str], *, engine: str = "auto", limits: Limits | None = None) -> Store:
    """rclone where it is installed; else pyarrow for S3 and python-swiftclient for Swift. Raises StorageError without credentials or without a program."""
    credentials = credentials_from(environment, remote.kind)
    engine = _engine(remote, engine)
    if engine == "pyarrow":
        from .pyarrow_s3 import PyarrowS3

        return PyarrowS3(remote, credentials, limits=limits)
    if engine == "swiftclient":
        from .swift_client import SwiftClient

        return SwiftClient(remote, credentials, limits=limits)
    return Rclone(remote, credentials, program=rclone_or_fail(remote), limits=limits)


def _engine(remote: Remote, engine: str) -> str:
    other = _WITHOUT_RCLONE[remote.kind]
    if engine not in ("auto", "rclone", other):
        raise StorageError(f"{engine} cannot reach {remote}.", hint=f"Leave out --engine, or give --engine {other}.")
    if engine == "auto":
        return "rclone" if find_rclone() or (other == "swiftclient" and not _has_swiftclient()) else other
    return engine


def _has_swiftclient() -> bool:
    return importlib.util.find_spec("swiftclient") is not None


def pull(store: Store, folder: Path | str, *, apart: bool = False, progress: Progress | None = None) -> Transfer:
    """Make ``folder`` hold every object below the store's remote. One at a time: a second process waits for the first, then finds all there.

    Raises StorageError for names that no folder should hold (before anything is written), a failing store, or content that differs from
    the store's; NoSpaceError where the disk cannot take it. What has arrived by then is kept for the next call. ``apart``: of ``check_names``.
    """
    folder, started, progress = Path(folder), time.monotonic(), progress or _silent
    listing = store.listing(checksums=True)
    if not listing.objects:
        raise missing(store.remote)
    check_names((item.name for item in listing.objects), where=str(store.remote), apart=apart)
    with workplace(folder) as staging:
        refuse_links(folder, (item.name for item in listing.objects))
        differing = _differing(store, listing, folder, stage="Comparing", progress=progress)
        wanted = _not_staged(store, listing, differing, staging)
        _check_space(folder, sum(item.size_bytes for item in wanted))
        if wanted:
            _fetch(store, listing, wanted, staging, progress)
        if faulty := _differing(store, listing, staging, among=differing, stage="Checking", progress=progress):
            raise StorageError(
                f"{len(faulty):,} of {len(differing):,} copied objects of {store.remote} differ from the store's checksum, the first is {faulty[0].name!r}.",
                hint="They may have changed while they were copied. Run the same command again: it copies those.",
            )
        put_in_place(staging, folder, [item.name for item in differing])
    return _account(listing.objects, wanted, started)


def push(store: Store, folder: Path | str, *, create: bool = False, apart: bool = False, progress: Progress | None = None) -> Transfer:
    """Make the store hold every file below ``folder`` (or the one file that it is), under the store's remote.

    Links and special files are refused, not skipped. Raises StorageError for those, for names that no ``pull`` would take, where the
    bucket is missing (unless ``create``), for a failing store, and where the store's content differs afterwards. ``apart``: of ``check_names``.
    """
    folder, started, progress = Path(folder), time.monotonic(), progress or _silent
    names, empty_folders = _local_names(folder)
    source = folder if folder.is_dir() else folder.parent
    there = _what_is_there(store, create=create)
    where = f"{folder} and {store.remote} together" if there else str(folder)
    check_names(sorted({*names, *(item.name for item in there)}), where=where, apart=apart)
    local = [RemoteObject(name=name, size_bytes=(source / name).stat().st_size) for name in names]
    known = {item.name: item for item in there}
    listing = Listing(folder=store.remote, objects=tuple(known[item.name] for item in local if item.name in known))
    stale = {item.name for item in _differing(store, listing, source, stage="Comparing", progress=progress)}
    wanted = [item for item in local if item.name not in known or item.name in stale]
    if wanted:
        total = sum(item.size_bytes for item in wanted)
        report = progress
        store.send(source, [item.name for item in wanted], on_bytes=lambda done: report("Copying", min(done, total), total))
        _check_sent(store, source, [item.name for item in wanted], progress)
    return _account(local, wanted, started, empty_folders)


def _fetch(store: Store, listing: Listing, wanted: Sequence[RemoteObject], staging: Path, progress: Progress) -> None:
    total = sum(item.size_bytes for item in wanted)
    store.fetch(listing.folder, wanted, staging, on_bytes=lambda done: progress("Copying", min(done, total), total))
    progress("Copying", total, total)


def _differing(
    store: Store, listing: Listing, folder: Path, *, stage: str, progress: Progress, among: Sequence[RemoteObject] | None = None
) -> list[RemoteObject]:
    """Objects whose file in ``folder`` is missing or has another content."""
    items = listing.objects if among is None else among
    same_size = {item.name for item in items if _size(folder / item.name) == item.size_bytes}
    unknown = [item.name for item in items if item.name in same_size and item.md5 is None]
    digests = store.digest(listing.folder, unknown) if unknown else {}
    differing = []
    for done, item in enumerate(items, start=1):
        if item.name not in same_size or _md5(folder / item.name) != (item.md5 or digests.get(item.name)):
            differing.append(item)
        if same_size:
            progress(stage, done, len(items))
    return differing


def _not_staged(store: Store, listing: Listing, items: Sequence[RemoteObject], staging: Path) -> list[RemoteObject]:
    """What an earlier, interrupted call has not brought whole. Its other leftovers are removed."""
    wanted = _differing(store, listing, staging, among=items, stage="", progress=_silent)
    whole = {staging / item.name for item in items} - {staging / item.name for item in wanted}
    for root, _, files in os.walk(staging, topdown=False):
        for path in {Path(root) / name for name in files} - whole:
            path.unlink()
        if Path(root) != staging and not os.listdir(root):
            os.rmdir(root)
    return wanted


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise NoSpaceError(
            f"{folder} has {free_bytes:,} bytes free, and {needed_bytes:,} are needed.", hint="Free some space or choose another folder, then run it again."
        )


def _what_is_there(store: Store, *, create: bool) -> tuple[RemoteObject, ...]:
    if create:
        store.create_bucket()
    listing = store.listing(checksums=True)
    if listing.folder != store.remote:
        raise StorageError(f"{store.remote} is an object, and no folder to push into.", hint="Name its folder, or a new one.")
    return listing.objects


def _check_sent(store: Store, source: Path, names: Sequence[str], progress: Progress) -> None:
    there = {item.name: item for item in store.listing(checksums=True).objects}
    absent = [name for name in names if name not in there]
    arrived = Listing(folder=store.remote, objects=tuple(there[name] for name in names if name in there))
    differing = [item.name for item in _differing(store, arrived, source, stage="Checking", progress=progress)]
    if faulty := absent + differing:
        raise StorageError(
            f"{len(faulty):,} of {len(names):,} objects of {store.remote} differ from the files that were sent, the first is {faulty[0]!r}.",
            hint="The files may have changed while they were copied. Run the same command again: it sends those.",
        )


def _local_names(folder: Path) -> tuple[list[str], int]:
    """(names of all files below, number of empty folders); a file is itself the only one."""
    if folder.is_file() and not folder.is_symlink():
        return [folder.name], 0
    if not folder.is_dir():
        raise StorageError(f"{folder} is no folder and no file.", hint="Give the folder to push.")
    names, empty = [], 0
    for root, folders, files in os.walk(folder, onerror=_raise):
        if WORK_FOLDER in folders:
            if is_unfinished(Path(root)):
                raise StorageError(f"{root} holds an unfinished pull.", hint=f"Repeat the pull, or remove {Path(root) / WORK_FOLDER}.")
            folders.remove(WORK_FOLDER)
        empty += not folders and not files and root != str(folder)
        for path in (Path(root) / name for name in [*folders, *files]):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StorageError(
                    f"{path} is a link or a special file, which an object store cannot hold.", hint="Replace it by what it leads to, or remove it."
                )
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
    if not names:
        raise StorageError(f"{folder} holds no files.", hint="Give the folder to push.")
    return sorted(names), empty


def _raise(error: OSError) -> None:
    raise StorageError(f"{error.filename} cannot be read: {error.strerror}.", hint="Push a folder that you may read.") from error


def _size(path: Path) -> int | None:
    """None for what is no file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _account(objects: Sequence[RemoteObject], copied: Sequence[RemoteObject], started: float, empty_folders: int = 0) -> Transfer:
    return Transfer(
        objects=len(objects),
        size_bytes=sum(item.size_bytes for item in objects),
        copied=len(copied),
        copied_bytes=sum(item.size_bytes for item in copied),
        empty_folders=empty_folders,
        time_s=time.monotonic() - started,
    )


def _silent(stage: str, done: int, total: int) -> None:
    pass

"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import storage_errors as storage_errors

_RANDOM = "[a-z0-9_]" * 8
"""What tempfile puts into a name. ``*`` would also fit the temporary name of ``NAME.v2``, whose writer may be at work."""


@contextmanager
def atomic_file(path: Path | str, *, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write to; it takes ``path``'s place, flushed to disk, when the block ends without an error.

    ``private``: for the eyes of its owner alone, at every moment.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if not private:
                os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path | str, text: str, *, private: bool = False) -> None:
    with atomic_file(path, private=private) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Readable, stable JSON. NaN and infinity are refused (ValueError): they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill; it takes the name ``path`` when the block ends without an error. ``path`` must not exist."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            os.chmod(temporary, 0o777 & ~_umask())
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            os.rename(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_leftovers(path: Path | str) -> None:
    """Delete what killed writers of ``path`` left behind. Call it only where no other writer of ``path`` can be at work."""
    path = Path(path)
    if path.parent.is_dir():
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_RANDOM}.tmp"):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        _sync(path)

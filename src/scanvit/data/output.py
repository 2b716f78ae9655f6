"""The place of a new pack: one writer at a time, nothing of the user's replaced by mistake, and the old pack there until the new one is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import PackError
from ..storage.atomic import atomic_folder, remove_leftovers, storage_errors
from .sources import SPLITS


def beside(out: Path, what: str) -> Path:
    """A hidden neighbour of ``out``."""
    return out.with_name(f".{out.name}.{what}")


def refuse_inside(out: Path, sources: Iterable[tuple[Path, Callable[[str], bool]]]) -> None:
    """Raise PackError where ``out`` would stand inside a source: its arrays would count as images there, and its work would change the source.

    ``sources``: each with what of it is read (``sources.reads``). A pack that is not may stand there.
    """
    place = Path(os.path.realpath(out))
    for source, is_read in sources:
        folder = Path(os.path.realpath(source))
        if not os.path.isdir(source) or not place.is_relative_to(folder):
            continue
        arrays = [at / f"{split}.npy" for at in (place, beside(place, "next"), beside(place, "old")) for split in SPLITS] if place != folder else []
        if not arrays or any(is_read(array.relative_to(folder).as_posix()) for array in arrays):
            raise PackError(f"{out} lies inside the source {source}.", hint="Give an output outside of the sources, such as packs/NAME beside them.")


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Raises PackError where another process is writing ``out``. The lock ends with the process, however that ends."""
    file = beside(out, "lock")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(file)
    if descriptor is None:
        raise PackError(f"Another process is preparing {out}.", hint="Wait for it, or give another output.")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it before finds a file that is no longer there, and tries again
        os.close(descriptor)


def make_way(out: Path, *, overwrite: bool) -> None:
    """Clear what killed writers left, and raise PackError where something stands at ``out`` that may not be replaced. Call it under the lock."""
    if not out.exists() and beside(out, "old").is_dir():  # killed between the two renames of ``replacing``
        os.rename(beside(out, "old"), out)
    remove_leftovers(out)
    remove_leftovers(beside(out, "next"))
    for what in ("old", "next"):
        shutil.rmtree(beside(out, what), ignore_errors=True)
    if out.exists() or out.is_symlink():
        if not (out / "dataset.json").is_file():
            raise PackError(f"{out} exists and is no pack.", hint="Give another output: it is not touched.")
        if not overwrite:
            raise PackError(f"{out} exists.", hint="Add --overwrite to replace it, or give another output.")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``out`` when the block ends without an error; a pack that stood there goes only then."""
    if not out.exists():
        with atomic_folder(out) as folder:
            yield folder
        return
    with atomic_folder(beside(out, "next")) as folder:
        yield folder
    with storage_errors(out):
        os.rename(out, beside(out, "old"))
        os.rename(beside(out, "next"), out)
    shutil.rmtree(beside(out, "old"), ignore_errors=True)


def _take(file: Path) -> int | None:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            if os.stat(file).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)

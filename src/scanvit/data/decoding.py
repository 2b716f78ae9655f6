"""Decoding on all cores, in batches that survive a kill: a finished batch is a file in the work folder and is not decoded again."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import DataError
from ..storage.atomic import storage_errors, write_bytes, write_json
from .archive_base import Archive
from .file_rows import NOTHING_ASKED, Asked, asked_of, decoding_key, rows_of_file
from .selection import Candidates, Selection
from .workers import worker_pool

BATCH_IMAGES = 256
BATCH_BYTES = 64 << 20
"""Packed bytes of a batch: memory stays below about 2 * workers * (BATCH_BYTES + one decoded image)."""
_VERSION = 2
"""Of the batch files and of the pixel path; raise it when either changes."""
Items = list[tuple[str, bytes]]
"""(path, content) of some images, in the order of the archive."""
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Batch:
    source: int
    """Index of the selection."""
    candidates: Candidates
    """All of the selection's; the batch is those from ``start`` to before ``stop``."""
    start: int
    stop: int
    file: Path
    """Where its pixels and rows are, once it is done."""

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def paths(self) -> tuple[str, ...]:
        """In the order in which the archive is read."""
        return tuple(self.candidates.paths[self.start : self.stop])


def plan_batches(selections: list[Selection], work: Path) -> list[Batch]:
    """A pure function of the selections."""
    batches: list[Batch] = []
    for source, selection in enumerate(selections):
        start = size_bytes = 0
        for row, member_bytes in enumerate(selection.candidates.sizes_bytes()):
            if row > start and (row - start >= BATCH_IMAGES or size_bytes + member_bytes > BATCH_BYTES):
                batches.append(Batch(source, selection.candidates, start, row, work / f"{len(batches):07d}.npz"))
                start, size_bytes = row, 0
            size_bytes += member_bytes
        if len(selection.candidates) > start:
            batches.append(Batch(source, selection.candidates, start, len(selection.candidates), work / f"{len(batches):07d}.npz"))
    return batches


def open_work_folder(work: Path, selections: list[Selection], contract: PixelContract) -> None:
    """Make the work folder, or keep it where it belongs to the same images and the same contract; else start it afresh."""
    listing = hashlib.sha256()
    for selection in selections:
        listing.update(selection.archive.identity().encode("utf-8", "surrogateescape"))
        for candidate in selection.candidates:
            listing.update(f"\n{candidate.path}|{candidate.size_bytes}".encode())
    key = {"version": _VERSION, "contract": contract.to_dict(), "batch_images": BATCH_IMAGES, "images": listing.hexdigest()}
    key |= decoding_key([selection.source for selection in selections])
    with storage_errors(work):
        try:
            found = json.loads((work / "key.json").read_bytes())
        except (OSError, ValueError):
            found = None
        if found != key:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_json(work / "key.json", key)


def decode_batches(
    selections: list[Selection],
    batches: list[Batch],
    contract: PixelContract,
    *,
    workers: int,
    on_images: Callable[[int], None],
    engine: Engine = "local",
) -> int:
    """Decode every batch that has no file yet; ``on_images`` is told how many images were finished. Returns the number reused.

    ``engine``: local, in ``workers`` processes, or ray, on a cluster. Either gives the same files.
    """
    todo = [batch for batch in batches if not batch.file.is_file()]
    reused = sum(map(len, batches)) - sum(map(len, todo))
    on_images(reused)
    if engine == "ray":
        from .ray_decoding import decode_on_ray

        decode_on_ray(selections, todo, contract, on_images=on_images)
        return reused
    work = _read_items(selections, todo)
    asked = [asked_of(selection.source) for selection in selections]
    # Starting processes takes longer than a batch or two.
    if workers <= 1 or len(todo) <= 2:
        for batch, items in work:
            on_images(_decode_to_file(str(batch.file), items, contract, asked[batch.source]))
        return reused
    try:
        _decode_in_pool(work, contract, asked, workers=min(workers, len(todo)), on_images=on_images)
    except BrokenProcessPool:
        raise DataError(
            "A decoding process was killed, most likely because the machine ran out of memory.",
            hint="Run the same command with fewer --workers: it goes on where it stopped.",
        ) from None
    return reused


def read_groups(archive: Archive, groups: Iterable[tuple[str, ...]], wanted: Container[str]) -> Iterator[Items]:
    """The bytes of groups of members, which follow the order of the archive and together are the wanted ones. Raises DataError if it changed."""
    stream = archive.read(wanted)
    for paths in groups:
        items = list(islice(stream, len(paths)))
        if tuple(path for path, _ in items) != paths:
            raise DataError(f"{archive.path} changed while it was read.", hint="Run the same command again.")
        yield items


class InOrder(Container[str]):
    """The wanted members for a reader that asks for every member in the order in which these stand: one is held at a time."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = iter(paths)
        self._next = next(self._paths, None)

    def __contains__(self, path: object) -> bool:
        if path != self._next:
            return False
        self._next = next(self._paths, None)
        return True


def read_rows(batch: Batch) -> list[dict[str, Any]]:
    """Those of ``file_rows.rows_of_file``, in the order of the paths; those of images with "index", into the pixels."""
    with _opened(batch) as stored:
        rows: list[dict[str, Any]] = json.loads(stored["rows"].tobytes())
        return rows


def read_pixels(batch: Batch) -> np.ndarray:
    """uint8 (n, C, H, W): the readable images."""
    with _opened(batch) as stored:
        pixels: np.ndarray = stored["pixels"]
        return pixels


@contextmanager
def _opened(batch: Batch) -> Iterator[Any]:
    try:
        with open(batch.file, "rb") as file, np.load(file, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile) as cause:
        batch.file.unlink(missing_ok=True)
        raise DataError(f"The unfinished work in {batch.file} is damaged: {cause}.", hint="Run the same command again: this part is decoded anew.") from None


def _read_items(selections: list[Selection], todo: list[Batch]) -> Iterator[tuple[Batch, Items]]:
    for source, selection in enumerate(selections):
        mine = [batch for batch in todo if batch.source == source]
        wanted = InOrder(path for batch in mine for path in batch.paths)
        yield from zip(mine, read_groups(selection.archive, (batch.paths for batch in mine), wanted), strict=True)


def _decode_in_pool(
    work: Iterable[tuple[Batch, Items]], contract: PixelContract, asked: list[Asked], *, workers: int, on_images: Callable[[int], None]
) -> None:
    with worker_pool(workers) as pool:
        pending: set[Future[int]] = set()
        for batch, items in work:
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                on_images(sum(future.result() for future in done))
            pending.add(pool.submit(_decode_to_file, str(batch.file), items, contract, asked[batch.source]))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            on_images(sum(future.result() for future in done))


def _decode_to_file(file: str, items: Items, contract: PixelContract, asked: Asked) -> int:
    """Write the batch's file, whole or not at all, and return the number of files decoded."""
    write_bytes(file, decode_items(items, contract, asked))
    return len(items)


def decode_items(items: Items, contract: PixelContract, asked: Asked = NOTHING_ASKED) -> bytes:
    """What a batch's file holds, the same for the same items on every machine: see read_rows and read_pixels. ``asked``: file_rows.asked_of."""
    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for path, data in items:
        found, images = rows_of_file(path, data, contract, asked=asked)
        rows += [row | {"index": len(pixels) + number} for number, row in enumerate(found)] if images else found
        pixels += images
    stacked = np.stack(pixels) if pixels else np.zeros((0, *contract.shape), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, pixels=stacked, rows=np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8))
    return stream.getvalue()

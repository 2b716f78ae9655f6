"""Decoding on all cores, in batches that survive a kill: a finished batch is a file in the work folder and is not decoded again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import DataError
from ..storage.atomic import atomic_file, storage_errors, write_json
from .file_rows import decoding_key, rows_of_file, salt_of
from .selection import Selection
from .workers import worker_pool

BATCH_IMAGES = 256
BATCH_BYTES = 64 << 20
"""Packed bytes of a batch: memory stays below about 2 * workers * (BATCH_BYTES + one decoded image)."""
_VERSION = 2
"""Of the batch files and of the pixel path; raise it when either changes."""
_Items = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Batch:
    source: int
    """Index of the selection."""
    paths: tuple[str, ...]
    """In the order in which the archive is read."""
    file: Path
    """Where its pixels and rows are, once it is done."""


@dataclass(frozen=True)
class DecodedBatch:
    batch: Batch
    pixels: np.ndarray
    """uint8 (n, C, H, W): the readable images."""
    rows: list[dict[str, Any]]
    """Those of ``file_rows.rows_of_file``, in the order of the paths; those of images with "index", into pixels."""


def plan_batches(selections: list[Selection], work: Path) -> list[Batch]:
    """A pure function of the selections."""
    batches: list[Batch] = []
    for source, selection in enumerate(selections):
        paths: list[str] = []
        size_bytes = 0
        for candidate in selection.candidates:
            if paths and (len(paths) >= BATCH_IMAGES or size_bytes + candidate.size_bytes > BATCH_BYTES):
                batches.append(Batch(source, tuple(paths), work / f"{len(batches):07d}.npz"))
                paths, size_bytes = [], 0
            paths.append(candidate.path)
            size_bytes += candidate.size_bytes
        if paths:
            batches.append(Batch(source, tuple(paths), work / f"{len(batches):07d}.npz"))
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


def decode_batches(selections: list[Selection], batches: list[Batch], contract: PixelContract, *, workers: int, on_images: Callable[[int], None]) -> int:
    """Decode every batch that has no file yet; ``on_images`` is told how many images were finished. Returns the number reused."""
    todo = [batch for batch in batches if not batch.file.is_file()]
    reused = sum(len(b.paths) for b in batches) - sum(len(b.paths) for b in todo)
    on_images(reused)
    work = _read_items(selections, todo)
    salts = [salt_of(selection.source) for selection in selections]
    # Starting processes takes longer than a batch or two.
    if workers <= 1 or len(todo) <= 2:
        for batch, items in work:
            on_images(_decode_batch(str(batch.file), items, contract, salts[batch.source]))
        return reused
    try:
        _decode_in_pool(work, contract, salts, workers=min(workers, len(todo)), on_images=on_images)
    except BrokenProcessPool:
        raise DataError(
            "A decoding process was killed, most likely because the machine ran out of memory.",
            hint="Run the same command with fewer --workers: it goes on where it stopped.",
        ) from None
    return reused


def read_batch(batch: Batch) -> DecodedBatch:
    try:
        with open(batch.file, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return DecodedBatch(batch, stored["pixels"], json.loads(stored["rows"].tobytes()))
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile) as cause:
        batch.file.unlink(missing_ok=True)
        raise DataError(f"The unfinished work in {batch.file} is damaged: {cause}.", hint="Run the same command again: this part is decoded anew.") from None


def _read_items(selections: list[Selection], todo: list[Batch]) -> Iterator[tuple[Batch, _Items]]:
    for source, selection in enumerate(selections):
        mine = [batch for batch in todo if batch.source == source]
        stream = selection.archive.read({path for batch in mine for path in batch.paths})
        for batch in mine:
            items = list(islice(stream, len(batch.paths)))
            if [path for path, _ in items] != list(batch.paths):
                raise DataError(f"{selection.archive.path} changed while it was read.", hint="Run the same command again.")
            yield batch, items


def _decode_in_pool(
    work: Iterable[tuple[Batch, _Items]], contract: PixelContract, salts: list[bytes | None], *, workers: int, on_images: Callable[[int], None]
) -> None:
    with worker_pool(workers) as pool:
        pending: set[Future[int]] = set()
        for batch, items in work:
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                on_images(sum(future.result() for future in done))
            pending.add(pool.submit(_decode_batch, str(batch.file), items, contract, salts[batch.source]))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            on_images(sum(future.result() for future in done))


def _decode_batch(file: str, items: _Items, contract: PixelContract, salt: bytes | None) -> int:
    """Write the batch's file, whole or not at all, and return the number of files decoded."""
    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for path, data in items:
        found, images = rows_of_file(path, data, contract, salt=salt)
        rows += [row | {"index": len(pixels) + number} for number, row in enumerate(found)] if images else found
        pixels += images
    stacked = np.stack(pixels) if pixels else np.zeros((0, *contract.shape), np.uint8)
    with atomic_file(file) as stream:
        np.savez(stream, pixels=stacked, rows=np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8))
    return len(items)

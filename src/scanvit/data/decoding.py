"""Decoding on all cores, in batches that survive a kill: a finished batch is a file in the work folder and is not decoded again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

from ..core.contract import PixelContract
from ..core.errors import DataError
from ..storage.atomic import storage_errors, write_bytes, write_json
from .batches import Batch, Items, batch_images, decode_items, read_groups
from .file_rows import Asked, asked_of, decoding_key
from .ray_decoding import decode_on_ray
from .selection import Selection
from .workers import worker_pool

_VERSION = 3
"""Of the batch files and of the pixel path; raise it when either changes."""
Engine = Literal["local", "ray"]


def open_work_folder(work: Path, selections: list[Selection], contract: PixelContract) -> None:
    """Make the work folder, or keep it where it belongs to the same images and the same contract; else start it afresh."""
    listing = hashlib.sha256()
    for selection in selections:
        listing.update(selection.archive.identity().encode("utf-8", "surrogateescape"))
        for candidate in selection.candidates:
            listing.update(f"\n{candidate.path}|{candidate.size_bytes}".encode())
    key = {"version": _VERSION, "contract": contract.to_dict(), "batch_images": batch_images(contract), "images": listing.hexdigest()}
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

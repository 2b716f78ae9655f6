"""Batches of images to decode, each of which becomes a file in the work folder: what is in it, and how it is made and read."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import DataError
from .archives.base import Archive
from .candidates import Candidates
from .file_rows import NOTHING_ASKED, Asked, rows_of_file
from .selection import Selection

BATCH_IMAGES = 256
BATCH_BYTES = 64 << 20
"""Of a batch's files, packed, and of the images that they decode to: a few times as much is on its way for each worker, and one decoded file."""
Items = list[tuple[str, bytes]]
"""(path, content) of some images, in the order of the archive."""


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


def batch_images(contract: PixelContract) -> int:
    """Files of a batch at most: fewer where they decode to large images."""
    return max(1, min(BATCH_IMAGES, BATCH_BYTES // math.prod(contract.shape)))


def plan_batches(selections: list[Selection], work: Path, contract: PixelContract) -> list[Batch]:
    """A pure function of the selections and of the size of the images."""
    batches: list[Batch] = []
    most_images = batch_images(contract)
    for source, selection in enumerate(selections):
        start = size_bytes = 0
        for row, member_bytes in enumerate(selection.candidates.sizes_bytes()):
            if row > start and (row - start >= most_images or size_bytes + member_bytes > BATCH_BYTES):
                batches.append(Batch(source, selection.candidates, start, row, work / f"{len(batches):07d}.npz"))
                start, size_bytes = row, 0
            size_bytes += member_bytes
        if len(selection.candidates) > start:
            batches.append(Batch(source, selection.candidates, start, len(selection.candidates), work / f"{len(batches):07d}.npz"))
    return batches


def read_groups(archive: Archive, groups: Iterable[tuple[str, ...]], wanted: Container[str]) -> Iterator[Items]:
    """The bytes of groups of members, which follow the order of the archive and together are the wanted ones. Raises DataError if it changed."""
    stream = archive.read(wanted)
    for paths in groups:
        items = list(islice(stream, len(paths)))
        if tuple(path for path, _ in items) != paths:
            raise DataError(f"{archive.path} changed while it was read.", hint="Run the same command again.")
        yield items


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

"""From a table of decoded images and their splits to the arrays and the manifest of a pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .array_file import array_files
from .decoding import Batch, read_pixels
from .image_table import ImageTable
from .manifest import ROW_GROUP_IMAGES, manifest_writer
from .pack import MANIFEST
from .sources import SPLITS


def rows_in_splits(splits: np.ndarray) -> np.ndarray:
    """int64 (N,): each image's row in the array of its split; ``splits``: codes (N,). Images of a split keep their order."""
    rows = np.empty(len(splits), np.int64)
    for code in range(len(SPLITS)):
        members = np.flatnonzero(splits == code)
        rows[members] = np.arange(len(members))
    return rows


def split_sizes(splits: np.ndarray) -> dict[str, int]:
    """{split: images}, every split."""
    return dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))


def write_rows(folder: Path, images: ImageTable, splits: np.ndarray, *, class_names: Sequence[str], source_names: Sequence[str]) -> None:
    """The manifest, a row group at a time."""
    prefixes = np.ascontiguousarray(images.digests("sha256")[:, :_ID_BYTES]).view(f"V{_ID_BYTES}")
    assert len(np.unique(prefixes)) == len(images), "80 bits of SHA-256 tell different files apart"
    rows, order = rows_in_splits(splits), np.argsort(splits, kind="stable")
    with manifest_writer(folder / MANIFEST) as write:
        for start in range(0, len(order), ROW_GROUP_IMAGES):
            chosen = order[start : start + ROW_GROUP_IMAGES]
            columns = {name: images[name].take(chosen) for name in ("path", "patient_id", "width_px", "height_px", "format")}
            columns |= {name: [digest.hex() for digest in images[name].take(chosen).to_pylist()] for name in ("sha256", "perceptual_hash")}
            columns["image_id"] = [sha256[: 2 * _ID_BYTES] for sha256 in columns["sha256"]]
            columns["class_name"] = [class_names[code] for code in images.numpy("class")[chosen].tolist()]
            columns["source"] = [source_names[code] for code in images.numpy("source")[chosen].tolist()]
            write(columns | {"split": [SPLITS[code] for code in splits[chosen].tolist()], "row": rows[chosen]})


def write_arrays(
    folder: Path, batches: Sequence[Batch], images: ImageTable, splits: np.ndarray, *, shape: tuple[int, ...], progress: Callable[[int, int], None]
) -> None:
    """The splits' arrays, a batch at a time. ``shape``: (C, H, W)."""
    rows, batch_of, index_of = rows_in_splits(splits), images.numpy("batch"), images.numpy("index")
    by_batch = np.argsort(batch_of, kind="stable")
    bounds = np.searchsorted(batch_of[by_batch], np.arange(len(batches) + 1))
    with array_files(folder, split_sizes(splits), shape) as files:
        for number, batch in enumerate(batches):
            members = by_batch[bounds[number] : bounds[number + 1]]
            pixels: Any = read_pixels(batch) if len(members) else None
            for code, split in enumerate(SPLITS):
                chosen = members[splits[members] == code]
                if len(chosen):
                    files[split].put(rows[chosen], pixels[index_of[chosen]])
            progress(number + 1, len(batches))


_ID_BYTES = 10

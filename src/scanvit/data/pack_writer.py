"""From a table of decoded images and their splits to the arrays and the manifest of a pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..storage.scratch import pieces_of, scratch_zeros
from .array_file import array_files
from .batches import Batch, read_pixels
from .duplicates import share_a_prefix
from .image_table import ImageTable
from .manifest import ROW_GROUP_IMAGES, manifest_writer
from .pack import MANIFEST
from .sources import SPLITS


def rows_in_splits(splits: np.ndarray) -> np.ndarray:
    """int64 (N,): each image's row in the array of its split; ``splits``: codes (N,). Images of a split keep their order."""
    rows = scratch_zeros(len(splits), np.int64)
    counts = np.zeros(len(SPLITS), np.int64)
    for piece in pieces_of(len(splits)):
        for code in range(len(SPLITS)):
            members = np.flatnonzero(splits[piece] == code)
            rows[piece][members] = counts[code] + np.arange(len(members))
            counts[code] += len(members)
    return rows


def by_split(splits: np.ndarray) -> np.ndarray:
    """int64 (N,): the images in the order of the manifest, by split, and within a split as they stand."""
    order, start = scratch_zeros(len(splits), np.int64), 0
    for code in range(len(SPLITS)):
        for piece in pieces_of(len(splits)):
            members = np.flatnonzero(splits[piece] == code) + piece.start
            order[start : start + len(members)] = members
            start += len(members)
    return order


def split_sizes(splits: np.ndarray) -> dict[str, int]:
    """{split: images}, every split."""
    return dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))


def write_rows(folder: Path, images: ImageTable, splits: np.ndarray, *, class_names: Sequence[str], source_names: Sequence[str]) -> None:
    """The manifest, a row group at a time."""
    suspects = images.digests("sha256")[share_a_prefix(images.digests("sha256")), :_ID_BYTES]
    assert len(np.unique(suspects, axis=0)) == len(suspects), "80 bits of SHA-256 tell different files apart"
    rows, order = rows_in_splits(splits), by_split(splits)
    classes, sources, formats = pa.array(class_names), pa.array(source_names), pa.array(images.formats, pa.string())
    with manifest_writer(folder / MANIFEST) as write:
        for start in range(0, len(order), ROW_GROUP_IMAGES):
            chosen = order[start : start + ROW_GROUP_IMAGES]
            columns = {name: images.strings(name).take(pa.array(chosen)).cast(pa.string()) for name in ("path", "patient_id")}
            columns |= {name: images.numpy(name)[chosen] for name in ("width_px", "height_px")}
            columns |= {name: [digest.tobytes().hex() for digest in images.digests(name)[chosen]] for name in ("sha256", "perceptual_hash")}
            columns["image_id"] = [sha256[: 2 * _ID_BYTES] for sha256 in columns["sha256"]]
            for name, kinds, codes in (("class_name", classes, images.numpy("class")), ("source", sources, images.numpy("source"))):
                columns[name] = kinds.take(pa.array(codes[chosen]))
            columns |= {"format": formats.take(pa.array(images.numpy("format")[chosen])), "split": pa.array(SPLITS).take(pa.array(splits[chosen]))}
            write(columns | {"row": rows[chosen]})


def write_arrays(
    folder: Path, batches: Sequence[Batch], images: ImageTable, splits: np.ndarray, *, shape: tuple[int, ...], progress: Callable[[int, int], None]
) -> None:
    """The splits' arrays, a batch at a time. ``shape``: (C, H, W)."""
    rows, batch_of, index_of = rows_in_splits(splits), images.numpy("batch"), images.numpy("index")
    bounds = np.concatenate([[0], np.bincount(batch_of, minlength=len(batches)).cumsum()])
    by_batch = np.argsort(batch_of, kind="stable")
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

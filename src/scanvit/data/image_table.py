"""The readable images on their way from the decoder into a pack, in columns: about 200 bytes an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .selection import Candidate
from .sources import SPLITS

_TYPES = {
    "source": pa.int16(),  # index of the selection
    "path": pa.string(),
    "class": pa.int16(),  # index into the class names
    "patient_id": pa.string(),
    "kept_split": pa.int8(),  # code of the split that the source came with; -1: none
    "sha256": pa.binary(32),
    "pixels_sha256": pa.binary(32),
    "perceptual_hash": pa.binary(32),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "format": pa.string(),
    "batch": pa.int32(),
    "index": pa.int32(),  # into the batch's pixels
}
_DIGESTS = ("sha256", "pixels_sha256", "perceptual_hash")
_FLUSH_IMAGES = 1 << 12
"""Rows that are held as Python objects at a time."""


class ImageTable:
    """A row is one image; ``numpy`` and ``digests`` show a column without copying it."""

    def __init__(self, columns: dict[str, pa.Array]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["path"])

    def __getitem__(self, column: str) -> pa.Array:
        return self._columns[column]

    def numpy(self, column: str) -> np.ndarray:
        values: np.ndarray = self._columns[column].to_numpy()
        return values

    def digests(self, column: str) -> np.ndarray:
        """uint8 (N, 32)."""
        return digest_bytes(self._columns[column])

    def sort(self) -> None:
        """By source, then by path."""
        keys = pa.table({name: self._columns[name] for name in ("source", "path")})
        self.take(pc.sort_indices(keys, [("source", "ascending"), ("path", "ascending")]))

    def take(self, rows: pa.Array | np.ndarray) -> None:
        """Keep these rows, in this order. One column after the other, so that only one of them exists twice at a time."""
        indices = pa.array(rows)
        for name in self._columns:
            self._columns[name] = self._columns[name].take(indices)


class ImageTableBuilder:
    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_index = {name: index for index, name in enumerate(class_names)}
        self._pieces: dict[str, list[pa.Array]] = {name: [] for name in _TYPES}
        self._rows: list[tuple[Any, ...]] = []

    def append(self, source: int, candidate: Candidate, row: dict[str, Any], *, batch: int) -> None:
        """``row``: what the decoder says of the image (decoding.read_rows)."""
        split = -1 if candidate.split is None else SPLITS.index(candidate.split)
        digests = (bytes.fromhex(row[name]) for name in _DIGESTS)
        seen = (row["width_px"], row["height_px"], row["format"], batch, row["index"])
        self._rows.append((source, row["path"], self._class_index[candidate.class_name], candidate.patient_id, split, *digests, *seen))
        if len(self._rows) >= _FLUSH_IMAGES:
            self._flush()

    def finish(self) -> ImageTable:
        self._flush()
        return ImageTable({name: pa.concat_arrays(self._pieces.pop(name)) for name in _TYPES})

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(_TYPES)
        for (name, kind), values in zip(_TYPES.items(), columns, strict=True):
            self._pieces[name].append(pa.array(values, type=kind))
        self._rows = []


def digest_bytes(column: pa.Array) -> np.ndarray:
    """uint8 (N, 32): a column of 32-byte digests, not copied."""
    return np.frombuffer(column.buffers()[1], np.uint8)[32 * column.offset :][: 32 * len(column)].reshape(-1, 32)

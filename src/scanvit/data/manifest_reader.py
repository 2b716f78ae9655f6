"""The manifest of a pack, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.errors import PackCorruptError
from ..storage.scratch import Spool, pieces_of
from .columns import Strings, encode
from .manifest import attributes_of
from .sources import SPLITS

_BATCH_IMAGES = 1 << 14
_HINT = "Prepare the pack again."


@dataclass(frozen=True)
class ManifestReader:
    path: Path
    sizes: Sequence[int]
    """Images of each of SPLITS."""

    def attributes(self) -> list[str]:
        """The columns that the sources were asked to keep. Raises PackCorruptError."""
        with self._damage_told():
            names = attributes_of(pq.read_schema(self.path))
        if names is None:
            raise PackCorruptError(f"{self.path} does not hold the columns of a manifest.", hint=_HINT)
        return names

    def strings(self, name: str) -> pa.LargeStringArray:
        """A column of strings, in a scratch file where it is long."""
        column = Strings()
        for batch in self.batches(name):
            column.extend(batch[name].cast(pa.large_string()))
        return column.arrow()

    def batches(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Some columns of the manifest, some thousand rows at a time. Raises PackCorruptError, at the end at the latest."""
        wanted = list(dict.fromkeys((*names, "split", "row")))
        position = 0
        for batch in self._read(wanted):
            if not self._is_in_order(batch, position):
                raise PackCorruptError(f"{self.path} and dataset.json disagree about the splits.", hint=_HINT)
            position += len(batch)
            yield batch.select(list(names))
        if position != sum(self.sizes):
            raise PackCorruptError(f"{self.path} and dataset.json disagree about the splits.", hint=_HINT)

    def look_up(self, rows: Sequence[int] | np.ndarray, *names: str) -> list[dict[str, Any]]:
        """Some columns of a few rows of the manifest, in the order of ``rows``."""
        order = np.argsort(rows, kind="stable")
        found: list[dict[str, Any]] = [{}] * len(order)
        with self._damage_told(), pq.ParquetFile(self.path) as file:
            ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
            group_of = np.searchsorted(ends, np.asarray(rows)[order], side="right")
            for group in np.unique(group_of).tolist():
                table, start = file.read_row_group(group, list(names)), ends[group] - file.metadata.row_group(group).num_rows
                table.validate(full=True)
                mine = order[group_of == group]
                for place, row in zip(mine.tolist(), table.take(pa.array(np.asarray(rows)[mine] - start)).to_pylist(), strict=True):
                    found[place] = row
        return found

    def _read(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        with self._damage_told():
            file = pq.ParquetFile(self.path)
            known = attributes_of(file.schema_arrow) is not None
        if not known:
            raise PackCorruptError(f"{self.path} does not hold the columns of a manifest.", hint=_HINT)
        with file:
            batches = file.iter_batches(_BATCH_IMAGES, columns=names, use_threads=False)
            while True:
                with self._damage_told():
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch.validate(full=True)  # reading leaves damaged strings as they are
                yield batch.select(names)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as cause:
            raise PackCorruptError(f"{self.path} cannot be read: {_first_line(cause)}.", hint=_HINT) from None

    def _is_in_order(self, batch: pa.RecordBatch, position: int) -> bool:
        """``position``: the batch's first row in the manifest. Values that pyarrow takes from Python or from NumPy, or gives to it but by DLPack, have it
        import pandas: a quarter of a second of each start."""
        if any(column.null_count for column in batch.columns):
            return False
        start = 0
        for split, size in zip(SPLITS, self.sizes, strict=True):
            end = start + size
            first, last = max(start, position), min(end, position + len(batch))
            if first < last:
                part = batch.slice(first - position, last - first)
                if part["split"].unique().to_pylist() != [split] or (np.from_dlpack(part["row"]) != np.arange(first - start, last - start)).any():
                    return False
            start = end
        return position + len(batch) <= start


def split_masks(codes: np.ndarray, count: int, splits: np.ndarray) -> np.ndarray:
    """bool (number of splits, count): whether anything with the code, 0..count-1, stands in the split. ``splits``: codes of SPLITS, (N,)."""
    masks = np.zeros((len(SPLITS), count), bool)
    for piece in pieces_of(len(codes)):
        masks[splits[piece], codes[piece]] = True
    return masks


def count_manifest(manifest: Path, class_names: tuple[str, ...]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """({split: {class: images}}, {split: patients}), every split and every class."""
    images = {split: dict.fromkeys(class_names, 0) for split in SPLITS}
    column, splits = Strings(), Spool()
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(_BATCH_IMAGES, columns=["split", "class_name", "patient_id"], use_threads=False):
            for split in pc.unique(batch["split"]).to_pylist():
                for found in pc.value_counts(batch["class_name"].filter(pc.equal(batch["split"], split))).to_pylist():
                    images[split][found["values"]] += found["counts"]
            column.extend(batch["patient_id"].cast(pa.large_string()))
            splits.write(pc.index_in(batch["split"], value_set=pa.array(SPLITS)).to_numpy().astype(np.int8))
    patients = encode(column.arrow())
    return images, dict(zip(SPLITS, split_masks(patients.codes, len(patients.first), splits.array(np.int8)).sum(axis=1).tolist(), strict=True))


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")

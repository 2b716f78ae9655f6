"""The readable images on their way from the decoder into a pack, in columns: about 200 bytes an image, in scratch files where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..storage.scratch import Spool, pieces_of, spooled
from .attributes import code_of
from .candidates import Candidate
from .columns import Strings, take_strings
from .sources import SPLITS

_NUMBERS = {
    "source": np.int16,  # index of the selection
    "class": np.int16,  # index into the class names
    "kept_split": np.int8,  # code of the split that the source came with; -1: none
    "width_px": np.int32,
    "height_px": np.int32,
    "format": np.int8,  # index into the table's formats
    "batch": np.int32,
    "index": np.int32,  # into the batch's pixels
}
_DIGESTS = ("sha256", "pixels_sha256", "perceptual_hash")
_STRINGS = ("path", "patient_id")
_FLUSH_IMAGES = 1 << 12
"""Rows that are held as Python objects at a time."""


class ImageTable:
    """A row is one image. The columns are read-only."""

    def __init__(
        self,
        numbers: dict[str, np.ndarray],
        digests: dict[str, np.ndarray],
        strings: dict[str, pa.LargeStringArray],
        formats: list[str],
        attributes: dict[str, list[str]],
    ) -> None:
        self._numbers, self._digests, self._strings, self.formats = numbers, digests, strings, formats
        self.attributes = attributes
        """{attribute: its values}; the column of numbers of that name holds indices into them."""

    def __len__(self) -> int:
        return len(self._numbers["source"])

    def numpy(self, column: str) -> np.ndarray:
        """A column of numbers."""
        return self._numbers[column]

    def digests(self, column: str) -> np.ndarray:
        """uint8 (N, 32)."""
        return self._digests[column]

    def strings(self, column: str) -> pa.LargeStringArray:
        return self._strings[column]

    def sort(self) -> None:
        """By source, then by path."""
        keys = pa.table({"source": self._numbers["source"], "path": self._strings["path"]})
        self.take(pc.sort_indices(keys, [("source", "ascending"), ("path", "ascending")]).to_numpy())

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order."""
        pieces = list(pieces_of(len(rows)))
        for columns in (self._numbers, self._digests):
            for name, values in columns.items():
                columns[name] = spooled((values[rows[piece]] for piece in pieces), values.dtype, *values.shape[1:])
        for name, column in self._strings.items():
            self._strings[name] = take_strings(column, rows)


class ImageTableBuilder:
    def __init__(self, class_names: Sequence[str], attributes: Sequence[str] = ()) -> None:
        self._attributes: dict[str, dict[str, int]] = {name: {} for name in attributes}
        self._kinds = _NUMBERS | dict.fromkeys(attributes, np.int16)
        self._class_index = {name: index for index, name in enumerate(class_names)}
        self._formats: dict[str, int] = {}
        self._numbers = {name: Spool() for name in self._kinds}
        self._digests = {name: Spool() for name in _DIGESTS}
        self._strings = {name: Strings() for name in _STRINGS}
        self._rows: list[tuple[int, ...]] = []

    def append(self, source: int, candidate: Candidate, row: dict[str, Any], *, batch: int, attributes: Mapping[str, str] = MappingProxyType({})) -> None:
        """``row``: what the decoder says of the image (batches.read_rows). ``attributes``: {name: value}, those that it has.

        Raises SourcesError for an attribute of too many different values.
        """
        split = -1 if candidate.split is None else SPLITS.index(candidate.split)
        kind = self._formats.setdefault(row["format"], len(self._formats))
        codes = [code_of(name, codes, attributes.get(name, "")) for name, codes in self._attributes.items()]
        self._rows.append((source, self._class_index[candidate.class_name], split, row["width_px"], row["height_px"], kind, batch, row["index"], *codes))
        for name in _DIGESTS:
            self._digests[name].write(bytes.fromhex(row[name]))
        for name, text in zip(_STRINGS, (row["path"], candidate.patient_id), strict=True):
            self._strings[name].append(text)
        if len(self._rows) >= _FLUSH_IMAGES:
            self._flush()

    def finish(self) -> ImageTable:
        self._flush()
        return ImageTable(
            {name: self._numbers[name].array(kind) for name, kind in self._kinds.items()},
            {name: self._digests[name].array(np.uint8, 32) for name in _DIGESTS},
            {name: self._strings[name].arrow() for name in _STRINGS},
            list(self._formats),
            {name: list(codes) for name, codes in self._attributes.items()},
        )

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(self._kinds)
        for (name, kind), values in zip(self._kinds.items(), columns, strict=True):
            self._numbers[name].write(np.array(values, kind))
        self._rows = []


def digest_column(digests: np.ndarray) -> pa.FixedSizeBinaryArray:
    """uint8 (N, 32) as an Arrow column, not copied."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, pa.py_buffer(digests)])

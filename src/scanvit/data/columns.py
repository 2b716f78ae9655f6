"""Columns that hold no Python object a row, in scratch files where they are long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..storage.scratch import Spool, pieces_of, scratch_zeros

_PENDING = 1 << 12


class Strings(Sequence[str]):
    """A growing column of strings: their UTF-8 bytes end to end, and where each ends."""

    def __init__(self) -> None:
        self._data, self._ends = Spool(), Spool()
        self._ends.write(np.zeros(1, np.int64))
        self._size_bytes = self._length = 0
        self._pending: list[str] = []
        self._column: pa.LargeStringArray | None = None

    def append(self, text: str) -> None:
        self._pending.append(text)
        self._column = None
        if len(self._pending) >= _PENDING:
            self._settle()

    def extend(self, column: pa.LargeStringArray) -> None:
        self._settle()
        self._column = None
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        if len(column):
            self._data.write(memoryview(data)[ends[0] : ends[-1]] if data is not None else b"")
            self._ends.write(ends[1:] - ends[0] + self._size_bytes)
            self._size_bytes += int(ends[-1] - ends[0])
            self._length += len(column)

    def arrow(self) -> pa.LargeStringArray:
        """The column as it is now; not copied where it is long."""
        if self._column is None:
            self._settle()
            ends, data = (pa.py_buffer(spool.array(kind)) for spool, kind in ((self._ends, np.int64), (self._data, np.uint8)))
            self._column = pa.LargeStringArray.from_buffers(self._length, ends, data)
        return self._column

    def __len__(self) -> int:
        return self._length + len(self._pending)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            column = self.arrow()
            found: list[str] = (column.slice(rows.start, len(rows)) if rows.step == 1 else column.take(pa.array(rows, pa.int64()))).to_pylist()
            return found
        return str(self.arrow()[range(len(self))[index]].as_py())

    def __iter__(self) -> Iterator[str]:
        for piece in pieces_of(len(self)):
            yield from self[piece]

    def _settle(self) -> None:
        encoded = [text.encode() for text in self._pending]
        self._data.write(b"".join(encoded))
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64) + self._size_bytes
        self._ends.write(ends)
        self._size_bytes, self._length = int(ends[-1]) if len(ends) else self._size_bytes, self._length + len(encoded)
        self._pending = []


def take_strings(column: pa.LargeStringArray, rows: np.ndarray) -> pa.LargeStringArray:
    taken = Strings()
    for piece in pieces_of(len(rows)):
        taken.extend(column.take(pa.array(rows[piece])))
    return taken.arrow()


@dataclass(frozen=True)
class Encoded:
    """A column of strings as numbers."""

    codes: np.ndarray
    """int32 (N,), in the order in which the values appear first."""
    first: np.ndarray
    """int64 (K,): where each value appears first in ``column``."""
    column: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def names(self) -> Names:
        return Names(self)

    def take(self, rows: np.ndarray) -> Encoded:
        """Of these rows: values that are in none of them are left out."""
        is_used = np.zeros(len(self.first), bool)
        for piece in pieces_of(len(rows)):
            is_used[self.codes[rows[piece]]] = True
        anew = (np.cumsum(is_used, dtype=np.int32) - 1).astype(np.int32)
        codes = scratch_zeros(len(rows), np.int32)
        for piece in pieces_of(len(rows)):
            codes[piece] = anew[self.codes[rows[piece]]]
        return Encoded(codes, self.first[is_used], self.column)


@dataclass(frozen=True)
class Names(Sequence[str]):
    """The values by code, looked up one by one."""

    encoded: Encoded

    def __len__(self) -> int:
        return len(self.encoded.first)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            found: list[str] = self.encoded.column.take(pa.array(self.encoded.first[index])).to_pylist()
            return found
        return str(self.encoded.column[int(self.encoded.first[index])].as_py())

    def __iter__(self) -> Iterator[str]:
        for piece in pieces_of(len(self)):
            yield from self[piece]


def encode(column: pa.LargeStringArray) -> Encoded:
    """By sorting: a table of a million different strings takes ten times the memory of an order of them."""
    order = pc.sort_indices(column).to_numpy()
    codes = scratch_zeros(len(column), np.int32)
    first = Spool()
    number, before = -1, None
    for piece in pieces_of(len(order)):
        values = column.take(pa.array(order[piece]))
        is_new = np.ones(len(values), bool)
        is_new[1:] = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
        is_new[0] = values[0] != before
        codes[order[piece]] = number + np.cumsum(is_new)
        first.write(order[piece][is_new].astype(np.int64))  # the sort is stable: the first of equal ones has the lowest row
        number, before = number + int(is_new.sum()), values[-1]
    del order
    firsts = first.array(np.int64)
    by_appearance = np.argsort(firsts)
    anew = np.empty(len(firsts), np.int32)
    anew[by_appearance] = np.arange(len(firsts), dtype=np.int32)
    for piece in pieces_of(len(codes)):
        codes[piece] = anew[codes[piece]]
    return Encoded(codes, firsts[by_appearance], column)

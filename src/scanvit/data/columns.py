"""Columns that grow row by row and hold no Python object a row."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload


class Strings(Sequence[str]):
    """A growing column of strings: their UTF-8 bytes end to end, and where each ends. A list of str needs about 60 bytes more a string."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._data += text.encode()
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self._data[self._ends[row] : self._ends[row + 1]].decode()

"""The images of a source that may get into a pack, before any is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..storage.scratch import ROWS_AT_ONCE, Spool
from .columns import Strings
from .sources import SPLITS

_FACTS = np.dtype([("class", np.int32), ("split", np.int8), ("size_bytes", np.int64)])


@dataclass(frozen=True, slots=True)
class Candidate:
    path: str
    """Inside the source."""
    class_name: str
    patient_id: str
    """source:patient."""
    split: str | None
    """None: to be assigned."""
    size_bytes: int
    """As the archive says."""


class Candidates:
    """Candidates in columns: at a million of them, objects would need half a gigabyte."""

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self.paths, self.class_names = Strings(), list[str]()
        """The classes are in the order in which they were met first."""
        self.split_counts: dict[str | None, int] = dict.fromkeys((*SPLITS, None), 0)
        self._patients, self._facts = Strings(), Spool()
        self._pending: list[tuple[int, int, int]] = []
        self._forgotten = False
        self._class_codes: dict[str, int] = {}
        for candidate in candidates:
            self.append(candidate)

    def append(self, candidate: Candidate) -> None:
        code = self._class_codes.setdefault(candidate.class_name, len(self.class_names))
        if code == len(self.class_names):
            self.class_names.append(candidate.class_name)
        self.paths.append(candidate.path)
        self._patients.append(candidate.patient_id)
        self._pending.append((code, -1 if candidate.split is None else SPLITS.index(candidate.split), candidate.size_bytes))
        self.split_counts[candidate.split] += 1
        if len(self._pending) >= ROWS_AT_ONCE:
            self._settle()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Candidate]:
        for path, patient, (label, code, size_bytes) in zip(self.paths, self._patients, self._rows(), strict=True):
            yield Candidate(path, self.class_names[label], patient, None if code < 0 or self._forgotten else SPLITS[code], size_bytes)

    def sizes_bytes(self) -> Iterator[int]:
        return (size_bytes for _, _, size_bytes in self._rows())

    def forget_splits(self) -> None:
        self._forgotten = True
        self.split_counts = dict.fromkeys(SPLITS, 0) | {None: len(self)}

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        self._settle()
        facts = self._facts.array(_FACTS)
        return (row for start in range(0, len(facts), ROWS_AT_ONCE) for row in facts[start : start + ROWS_AT_ONCE].tolist())

    def _settle(self) -> None:
        self._facts.write(np.array(self._pending, _FACTS))
        self._pending = []

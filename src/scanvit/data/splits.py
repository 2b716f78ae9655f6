"""Splits by patient: a pure function of the patients, their classes, a seed, and whom an earlier split has placed already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ..storage.scratch import Spool, pieces_of, scratch_zeros, spooled
from .columns import Encoded, encode
from .sources import SPLITS, SplitConfig

_Held = list[tuple[int, int]]
"""(class, images) for each class that a patient has images of."""
_POOL = SPLITS.index("final_eval")
_MIN_OUTSIDE_POOL = 3
"""Patients of a class that the final_eval pool always leaves, one each for train, val and test."""


def assign_splits(
    patients: Sequence[str] | Encoded, class_indices: Sequence[int] | np.ndarray, *, shares: SplitConfig, seed: int, kept: np.ndarray | None = None
) -> np.ndarray:
    """The split of each image, int8 (N,), an index into SPLITS. All images of a patient get the same one.

    The final_eval pool is taken first, its share of each class. What it leaves is dealt out in proportion train : val : test within each
    class. Patients with many images come before those with few, so that every split gets some of either and the last ones even out the rest.
    Whom the pool and each split get depends on the seed and the patients' identifiers alone, not on the order of the rows. A class whose
    patients have no other class, four of them or more, has images in each of train, val and test.

    ``kept``: int8 (N,), the split in which an image's patient stands already, -1 for none. These patients stay, and the others are dealt out
    so that the totals of both meet the shares. Of several splits of one patient the last in the order of SPLITS counts.
    """
    if not len(patients):
        return np.zeros(0, np.int8)
    encoded = patients if isinstance(patients, Encoded) else encode(pa.array(patients, pa.large_string()))
    cohort = _Cohort(encoded, np.asarray(class_indices), seed, kept)
    _take_pool(cohort, shares.final_eval)
    _deal(cohort, {SPLITS.index(name): share for name, share in (("train", shares.train), ("val", shares.val), ("test", shares.test))})
    return cohort.split[cohort.patient_of]


class _Cohort:
    """The patients by number, in columns."""

    def __init__(self, patients: Encoded, labels: np.ndarray, seed: int, kept: np.ndarray | None) -> None:
        self.patient_of, self.num_classes = patients.codes, int(labels.max()) + 1
        self.split = np.full(len(patients.names), -1, np.int8)
        if kept is not None:
            np.maximum.at(self.split, self.patient_of, kept)
        self._owner, self._labels, self._images = self._count(labels)
        self._starts = np.searchsorted(self._owner, np.arange(len(self.split) + 1, dtype=np.int32)).astype(np.int32)
        self._order = self._in_order(patients.names, seed)

    def _count(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(patient, class, images) of each patient and class that occur together, in order."""
        keys = scratch_zeros(len(labels), np.int64)
        for piece in pieces_of(len(labels)):
            keys[piece] = self.patient_of[piece].astype(np.int64) * self.num_classes + labels[piece]
        keys.sort()
        columns = Spool(), Spool(), Spool()
        starts = np.append(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])), len(keys))
        for piece in pieces_of(len(starts) - 1):
            owner, label = np.divmod(keys[starts[piece]], self.num_classes)
            images = np.diff(starts[piece.start : piece.stop + 1])
            for column, values in zip(columns, (owner, label, images), strict=True):
                column.write(values.astype(np.int32))
        owner, label, images = (column.array(np.int32) for column in columns)
        return owner, label, images

    def _in_order(self, names: Sequence[str], seed: int) -> np.ndarray:
        # By a hash, not by a shuffle: whoever joins, and whatever library draws the numbers, two patients keep their order.
        high, low = Spool(), Spool()
        for name in names:
            digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
            high.write(digest[7::-1])  # big-endian, to be sorted by machines that are not
            low.write(digest[:7:-1])
        # Patients of several classes first (they fit worst), then by size in powers of two; the hash decides within.
        bit_length = np.frexp(np.bincount(self._owner, weights=self._images))[1].astype(np.int8)
        classes = np.bincount(self._owner).astype(np.int32)
        order = np.lexsort((low.array("<u8"), high.array("<u8"), -bit_length, -classes))
        return spooled((order[piece] for piece in pieces_of(len(order))), np.int32)

    def unplaced(self) -> Iterator[tuple[int, _Held]]:
        """(patient, what they hold) of those who have no split when their turn comes."""
        for piece in pieces_of(len(self._order)):
            for patient in self._order[piece].tolist():
                if self.split[patient] < 0:
                    held = slice(self._starts[patient], self._starts[patient + 1])
                    yield patient, list(zip(self._labels[held].tolist(), self._images[held].tolist(), strict=True))

    def images_by_class(self, chosen: np.ndarray | None = None) -> list[float]:
        """``chosen``: bool, one for each patient."""
        return self._by_class(chosen, lambda piece: self._images[piece])

    def patients_by_class(self, chosen: np.ndarray | None = None) -> list[float]:
        return self._by_class(chosen, lambda piece: np.ones_like(self._images[piece]))

    def _by_class(self, chosen: np.ndarray | None, weights: Callable[[slice], np.ndarray]) -> list[float]:
        total = np.zeros(self.num_classes)
        for piece in pieces_of(len(self._owner)):
            counted = weights(piece) if chosen is None else weights(piece) * chosen[self._owner[piece]]
            total += np.bincount(self._labels[piece], weights=counted, minlength=self.num_classes)
        return total.tolist()


def _take_pool(cohort: _Cohort, share: float) -> None:
    """Place the patients of the final_eval pool."""
    placed, in_pool = cohort.split >= 0, cohort.split == _POOL
    here = zip(cohort.patients_by_class(), cohort.patients_by_class(in_pool), strict=True)
    patients_left = [max(count - _MIN_OUTSIDE_POOL, 0) - taken for count, taken in here]
    # Images of the class that the pool should have by now, less those that it has.
    due = [share * count - taken for count, taken in zip(cohort.images_by_class(placed), cohort.images_by_class(in_pool), strict=True)]
    for patient, held in cohort.unplaced():
        for label, count in held:
            due[label] += share * count
        # Half of the patient's images are enough: to the nearest, not always below.
        if all(patients_left[label] >= 1 and due[label] >= count / 2 for label, count in held):
            cohort.split[patient] = _POOL
            for label, count in held:
                patients_left[label] -= 1
                due[label] -= count


def _deal(cohort: _Cohort, shares: dict[int, float]) -> None:
    """Place everybody else."""
    class_size = cohort.images_by_class(cohort.split != _POOL)
    given = {split: share for split, share in shares.items() if share > 0}
    target = {split: [size * share / sum(given.values()) for size in class_size] for split, share in given.items()}
    # missing[split][class]: the part of the target still to be filled, 1 at first.
    missing = {}
    for split in given:
        there = cohort.images_by_class(cohort.split == split)
        missing[split] = [1.0 - have / goal if have else 1.0 for have, goal in zip(there, target[split], strict=True)]
    for patient, held in cohort.unplaced():
        best, best_score = -1, -np.inf
        for split, fill in missing.items():
            score = sum(count / class_size[label] * fill[label] for label, count in held)
            if score > best_score:
                best, best_score = split, score
        cohort.split[patient] = best
        for label, count in held:
            missing[best][label] -= count / target[best][label]

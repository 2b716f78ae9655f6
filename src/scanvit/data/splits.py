"""Splits by patient: a pure function of the patients, their classes and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .sources import SplitConfig

_Patient = tuple[str, list[tuple[int, int]]]
"""Identifier, and (class, images) for each class that the patient has images of."""
_MIN_OUTSIDE_POOL = 3
"""Patients of a class that the final_eval pool always leaves, one each for train, val and test."""


def assign_splits(patients: Sequence[str], class_indices: Sequence[int] | np.ndarray, *, shares: SplitConfig, seed: int) -> list[str]:
    """The split of each image: train, val, test or final_eval. All images of a patient get the same one.

    The final_eval pool is taken first, its share of each class. What it leaves is dealt out in proportion train : val : test within each
    class. Patients with many images come before those with few, so that every split gets some of either and the last ones even out the rest.
    Whom the pool and each split get depends on the seed and the patients' identifiers alone, not on the order of the rows. A class whose
    patients have no other class, four of them or more, has images in each of train, val and test.
    """
    if not len(patients):
        return []
    names = sorted(set(patients))
    index = {name: number for number, name in enumerate(names)}
    patient_of = np.fromiter((index[name] for name in patients), np.int64, len(patients))
    labels = np.asarray(class_indices, dtype=np.int64)
    num_classes = int(labels.max()) + 1
    pairs, images = np.unique(patient_of * num_classes + labels, return_counts=True)
    cohort: list[_Patient] = [(name, []) for name in names]
    for pair, count in zip(pairs.tolist(), images.tolist(), strict=True):
        cohort[pair // num_classes][1].append((pair % num_classes, count))
    # By a hash, not by a shuffle: whoever joins, and whatever library draws the numbers, two patients keep their order.
    cohort.sort(key=lambda patient: hashlib.blake2b(f"{seed}:{patient[0]}".encode("utf-8", "surrogateescape"), digest_size=16).digest())
    # Patients of several classes first (they fit worst), then by size in powers of two; sorting is stable, so the hash decides within.
    cohort.sort(key=lambda patient: (-len(patient[1]), -sum(count for _, count in patient[1]).bit_length()))
    pool = _take_pool(cohort, shares.final_eval, num_classes)
    split_of = dict.fromkeys(pool, "final_eval")
    split_of |= _deal([p for p in cohort if p[0] not in pool], {"train": shares.train, "val": shares.val, "test": shares.test}, num_classes)
    return [split_of[name] for name in patients]


def _take_pool(cohort: list[_Patient], share: float, num_classes: int) -> set[str]:
    patients = [0] * num_classes
    for _, held in cohort:
        for label, _ in held:
            patients[label] += 1
    patients_left = [max(count - _MIN_OUTSIDE_POOL, 0) for count in patients]
    due = [0.0] * num_classes  # images of the class that the pool should have by now, less those that it has
    pool = set()
    for name, held in cohort:
        for label, count in held:
            due[label] += share * count
        # Half of the patient's images are enough: to the nearest, not always below.
        if all(patients_left[label] >= 1 and due[label] >= count / 2 for label, count in held):
            pool.add(name)
            for label, count in held:
                patients_left[label] -= 1
                due[label] -= count
    return pool


def _deal(cohort: list[_Patient], shares: dict[str, float], num_classes: int) -> dict[str, str]:
    total = np.zeros(num_classes)
    for _, held in cohort:
        for label, count in held:
            total[label] += count
    given = {split: share for split, share in shares.items() if share > 0}
    target = {split: (total * share / sum(given.values())).tolist() for split, share in given.items()}
    # missing[split][class]: the part of the target still to be filled, 1 at first.
    missing = {split: [1.0] * num_classes for split in given}
    class_size = total.tolist()
    result = {}
    for name, held in cohort:
        best, best_score = "", -np.inf
        for split, fill in missing.items():
            score = sum(count / class_size[label] * fill[label] for label, count in held)
            if score > best_score:
                best, best_score = split, score
        result[name] = best
        for label, count in held:
            missing[best][label] -= count / target[best][label]
    return result

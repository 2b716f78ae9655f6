"""What becomes of near duplicates under several patients before the images are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .columns import Encoded, encode
from .image_table import ImageTable
from .near_duplicates import find_near_duplicates
from .selection import Quarantined


@dataclass(frozen=True)
class Settled:
    left: np.ndarray | None
    """int64: the rows that stay; None where all do."""
    quarantined: list[Quarantined]
    patients: Encoded
    """Whom each row counts for when splitting, one entry for each row that stays."""
    placed: np.ndarray | None
    """int8, one entry for each row that stays: the split that binds whom it counts for, -1 for none."""


def settle_near_duplicates(images: ImageTable, choice: Literal["keep", "drop", "move"], *, placed: np.ndarray | None, source_names: Sequence[str]) -> Settled:
    """``placed``: int8, one entry for each row: the split in which an earlier pack has the image's patient, -1 for none."""
    encoded = encode(images.strings("patient_id"))
    if choice == "keep":
        return Settled(None, [], encoded, placed)
    patients = encoded.codes
    groups = shared_groups(images.digests("perceptual_hash").view(np.uint64), patients)
    bound = images.numpy("kept_split") if placed is None else np.maximum(placed, images.numpy("kept_split"))
    if choice == "drop":
        copies = later_copies(groups, patients, bound >= 0)
        stays = np.ones(len(images), bool)
        stays[list(copies)] = False
        left = np.flatnonzero(stays)
        quarantined = [_entry(images, source_names, row, head) for row, head in sorted(copies.items())]
        return Settled(left, quarantined, encoded.take(left), None if placed is None else placed[left])
    merged, bound = merge_patients(groups, patients, encoded.names, bound)
    return Settled(None, [], replace(encoded, codes=merged.astype(np.int32)).take(np.arange(len(images))), bound)


def shared_groups(hashes: np.ndarray, patients: np.ndarray) -> list[list[int]]:
    """The groups of near duplicates in which there is more than one patient, each as rows in ascending order. ``patients``: a code each."""
    found = find_near_duplicates(np.ascontiguousarray(hashes))
    members: dict[int, list[int]] = {}
    for row, group in zip(*found.members(), strict=True):
        members.setdefault(int(group), []).append(int(row))
    return [rows for rows in members.values() if len(np.unique(patients[rows])) > 1]


def later_copies(groups: Sequence[Sequence[int]], patients: np.ndarray, is_placed: np.ndarray) -> dict[int, int]:
    """Which rows to leave out so that no group holds two patients: {row: the row that it is a copy of}.

    The first row's patient keeps all images of the group; rows that have a split already come before those that have none.
    """
    copies: dict[int, int] = {}
    for rows in groups:
        head = min(rows, key=lambda row: (not is_placed[row], row))
        copies |= {row: head for row in rows if patients[row] != patients[head]}
    return copies


def merge_patients(groups: Sequence[Sequence[int]], patients: np.ndarray, names: Sequence[str], bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whom each row counts for when splitting (a code, int64), and the split that binds them (int8, -1 for none).

    Patients with an image in one group count as one, the least name of them; those who stand in different splits already stay apart, which the
    audit will tell. ``names``: of each code. ``bound``: int8, the split of each row that has one, -1 for none.
    """
    parent = np.arange(len(names))
    split = np.full(len(names), -1, np.int8)
    np.maximum.at(split, patients, bound)

    def find(code: int) -> int:
        while parent[code] != code:
            code = int(parent[code])
        return code

    for rows in groups:
        members = np.unique(patients[list(rows)]).tolist()
        members.sort(key=lambda code: (split[find(code)] < 0, names[code]))
        for code in members[1:]:
            one, other = find(members[0]), find(code)
            if one == other or (split[one] >= 0 and split[other] >= 0 and split[one] != split[other]):
                continue
            least, greater = sorted((one, other), key=lambda code: names[code])
            parent[greater] = least
            split[least] = max(split[one], split[other])
    roots = np.fromiter(map(find, range(len(names))), np.int64, len(names))
    return roots[patients], split[roots][patients]


def _entry(images: ImageTable, source_names: Sequence[str], row: int, head: int) -> Quarantined:
    sources, paths = images.numpy("source"), images.strings("path")
    return Quarantined(source_names[sources[row]], str(paths[row]), "near-duplicate", f"nearly the same as {source_names[sources[head]]}: {paths[head]}")

"""Exact duplicates, images with the same pixels, and what becomes of near ones before the split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .near_duplicates import find_near_duplicates, parse_hashes


def find_duplicates(images: Sequence[tuple[str, str]]) -> dict[int, tuple[str, int]]:
    """Which images to leave out: {index: (reason, index of the image it is compared with)}.

    ``images``: (SHA-256 of the decoded pixels, class) of each; equal files have equal pixels. Of equal images within one class the first is
    kept and the others are ``duplicate``. Equal images of different classes contradict each other: all of them are ``conflicting-labels``.
    """
    first: dict[str, int] = {}
    group: list[int] = []
    for index, (pixels, _) in enumerate(images):
        group.append(first.setdefault(pixels, index))
    conflict: dict[int, int] = {}
    for index, head in enumerate(group):
        if images[index][1] != images[head][1]:
            conflict.setdefault(head, index)
    rejected: dict[int, tuple[str, int]] = {}
    for index, head in enumerate(group):
        if head in conflict:
            other = head if images[index][1] != images[head][1] else conflict[head]
            rejected[index] = ("conflicting-labels", other)
        elif index != head:
            rejected[index] = ("duplicate", head)
    return rejected


def near_duplicate_groups(perceptual_hashes: Sequence[str], patients: Sequence[str]) -> list[list[int]]:
    """The groups of near duplicates in which there is more than one patient, each as indices in ascending order."""
    found = find_near_duplicates(parse_hashes(perceptual_hashes))
    groups = found.groups(len(perceptual_hashes))
    members: dict[int, list[int]] = {}
    for index in np.unique(np.concatenate([found.first, found.second])).tolist():
        members.setdefault(int(groups[index]), []).append(index)
    return [group for group in members.values() if len({patients[index] for index in group}) > 1]


def later_copies(groups: Sequence[Sequence[int]], patients: Sequence[str], kept_splits: Sequence[str | None]) -> dict[int, int]:
    """Which images to leave out so that no group holds two patients: {index: index of the image it is a copy of}.

    The first image's patient keeps all images of the group; an image whose split is kept comes before those that are still to be assigned.
    """
    rejected: dict[int, int] = {}
    for group in groups:
        head = min(group, key=lambda index: (kept_splits[index] is None, index))
        rejected |= {index: head for index in group if patients[index] != patients[head]}
    return rejected


def merge_patients(groups: Sequence[Sequence[int]], patients: Sequence[str]) -> list[str]:
    """For each image whom to take its patient for when splitting: patients with an image in one group become one, the least name of them."""
    least: dict[str, str] = {}

    def find(name: str) -> str:
        while (other := least.get(name, name)) != name:
            name = other
        return name

    for group in groups:
        names = sorted({find(patients[index]) for index in group})
        least |= dict.fromkeys(names[1:], names[0])
    return [find(name) for name in patients]

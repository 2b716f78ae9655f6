"""Exact duplicates: images with the same pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..storage.scratch import pieces_of


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


def share_a_prefix(digests: np.ndarray) -> np.ndarray:
    """int64: the rows of uint8 (N, 8 or more) whose first eight bytes stand in another row too. Whoever shares not even these has no equal."""
    repeated = np.empty(len(digests), np.uint64)
    for piece in pieces_of(len(digests)):
        repeated[piece] = _prefixes(digests[piece])
    repeated.sort()
    repeated = repeated[1:][repeated[1:] == repeated[:-1]]
    if not len(repeated):
        return np.zeros(0, np.int64)
    return np.concatenate([np.flatnonzero(np.isin(_prefixes(digests[piece]), repeated)) + piece.start for piece in pieces_of(len(digests))])


def _prefixes(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)

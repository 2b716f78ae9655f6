"""Near duplicates: images whose perceptual hashes differ in few bits, found without comparing every pair.

Multi-index hashing (Norouzi, Punjani, Fleet 2012, section 3): cut the 256 bits into m bands. Two hashes within t bits agree within floor(t / m)
bits in at least one band, so that only hashes with a nearly equal band need comparing. The search is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

BITS = 256
NEAR_DUPLICATE_BITS = 23
"""Largest distance of near duplicates. Measured at 64 px on 5,206 chest X-rays, 190 adult ones and 71 B-scans: 99 in 100 copies that were saved
anew as JPEG (quality 30 to 90), resized by half or by 3/4, or changed in contrast by 20 % or in gamma by 0.8 to 1.2, lie within 22 bits of
their original; the nearest images of two patients differ in 36 (drawn phantoms: 38). The larger the set, the nearer its nearest strangers."""
_CANDIDATES_AT_ONCE = 1 << 20
_LINKS_AT_ONCE = 1 << 22
_WIDEST_BAND_BITS = 22
"""The table of a band's values has 2**22 entries, 32 MB."""


@dataclass(frozen=True)
class NearDuplicates:
    """The links of the groups of near duplicates: a forest that spans each group, its nearest pairs first."""

    first: np.ndarray
    """int64 (L,): indices into the hashes, below ``second``."""
    second: np.ndarray
    distance: np.ndarray
    """int64 (L,): bits."""
    pairs: np.ndarray
    """int64 (t + 1,): number of all pairs at each distance, in the groups or not in the forest."""

    def groups(self, count: int) -> np.ndarray:
        """int64 (count,): the same number for images of one group; numbered in the order of their first images."""
        return _components(self.first, self.second, count)


def parse_hashes(hex_digits: Sequence[str]) -> np.ndarray:
    """uint64 (N, 4) of perceptual hashes of 64 hexadecimal digits each (``data.hashing``). Raises ValueError for anything else."""
    data = bytes.fromhex("".join(hex_digits))  # skips white space
    if any(len(value) != BITS // 4 for value in hex_digits) or len(data) != BITS // 8 * len(hex_digits):
        raise ValueError("a perceptual hash does not have 64 hexadecimal digits")
    return np.frombuffer(data, np.uint64).reshape(-1, 4)


def find_near_duplicates(hashes: np.ndarray, *, within: int = NEAR_DUPLICATE_BITS) -> NearDuplicates:
    """All groups of hashes, uint64 (N, 4), that are linked by distances of at most ``within`` bits, 0..63.

    Hashes without a bit set are of flat pictures: they tell nothing, and are linked to none. Time grows with N times the neighbours by chance
    in a band; memory with N alone, however large the groups are.
    """
    if not 0 <= within < 64:
        raise ValueError(f"within is {within}, not 0..63")
    told = np.flatnonzero(hashes.any(axis=1))
    # Equal hashes are one point: a thousand of them would be half a million pairs in every band.
    points, index, counts = np.unique(hashes[told], axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    heads = told[np.argsort(index, kind="stable")[np.cumsum(counts) - counts]]
    found = np.zeros(within + 1, np.int64)
    found[0] = (counts * (counts - 1) // 2).sum()
    forest = _Forest(len(points))
    for first, second, distance in _near_pairs(points, within):
        np.add.at(found, distance, counts[first] * counts[second])
        forest.add(first, second, distance)
    first, second, distance = forest.links()
    copies = np.flatnonzero(heads[index] != told)
    ends = np.sort([np.concatenate([heads[first], heads[index[copies]]]), np.concatenate([heads[second], told[copies]])], axis=0)
    distance = np.concatenate([distance, np.zeros(len(copies), np.int64)])
    nearest = np.lexsort((ends[1], ends[0], distance))
    return NearDuplicates(ends[0][nearest], ends[1][nearest], distance[nearest], found)


class _Forest:
    """Keeps of all links that it is given those of a minimum spanning forest, in bounded memory."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._links: list[np.ndarray] = []
        self._held = 0

    def add(self, first: np.ndarray, second: np.ndarray, distance: np.ndarray) -> None:
        if len(first):
            self._links.append(np.stack([first, second, distance]))
            self._held += len(first)
        if self._held > _LINKS_AT_ONCE + self._count:
            self._shrink()

    def links(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._shrink()
        first, second, distance = self._links[0] if self._links else np.zeros((3, 0), np.int64)
        return first, second, distance

    def _shrink(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree

        if not self._links:
            return
        first, second, distance = np.concatenate(self._links, axis=1)
        # Distances of different hashes are 1 or more: a stored 0 would count as no link.
        tree = coo_array(minimum_spanning_tree(coo_array((distance, (first, second)), shape=(self._count, self._count)).tocsr()))
        self._links = [np.stack([tree.coords[0].astype(np.int64), tree.coords[1].astype(np.int64), tree.data.astype(np.int64)])]
        self._held = tree.nnz


def _near_pairs(points: np.ndarray, within: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first, second, distance) of all pairs of different ``points`` within the distance, in chunks; each pair once."""
    bands = _plan_bands(len(points), within)
    errors = within // bands
    dealt = _deal_bits(points, bands)
    masks = np.stack([_mask_of(columns) for columns in dealt])
    for number, columns in enumerate(dealt):
        keys = _band_keys(points, columns)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], points[order]
        starts = np.concatenate([[0], np.bincount(keys, minlength=1 << len(columns)).cumsum()])
        for flipped in _flips(len(columns), errors):
            for left, right in _candidates(keys, starts, flipped):
                left, right, difference, distance = _verify(ordered, left, right, within)
                # A pair that an earlier band found as well was counted there.
                seen = np.zeros(len(left), bool)
                for mask in masks[:number]:
                    seen |= np.bitwise_count(difference & mask).sum(axis=1) <= errors
                new = ~seen
                ends = np.stack([order[left[new]], order[right[new]]])
                yield ends.min(axis=0), ends.max(axis=0), distance[new]


def _plan_bands(count: int, within: int) -> int:
    """The number of bands for which the search is expected to be cheapest, were the bits fair coins."""

    def cost(bands: int) -> float:
        width = BITS // bands
        probes = sum(comb(width, errors) for errors in range(within // bands + 1))
        # A candidate costs about five times a look into the table.
        return bands * (2.0 ** (width + 1) + probes * (count + 5 * count**2 / 2.0 ** (width + 1)))

    return min(range(-(-BITS // _WIDEST_BAND_BITS), BITS // 4 + 1), key=cost)


def _deal_bits(points: np.ndarray, bands: int) -> list[list[int]]:
    """The bits of each band. Bits that are nearly always the same tell little apart, so each band gets its share of them."""
    ones = np.array([((points[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1)).sum() for bit in range(BITS)], np.int64)
    order = np.argsort(np.abs(2 * ones - len(points)), kind="stable").tolist()
    return [order[band::bands] for band in range(bands)]


def _mask_of(columns: list[int]) -> np.ndarray:
    words = [0, 0, 0, 0]
    for bit in columns:
        words[bit // 64] |= 1 << (bit % 64)
    return np.array(words, np.uint64)


def _band_keys(points: np.ndarray, columns: list[int]) -> np.ndarray:
    keys = np.zeros(len(points), np.uint64)
    for position, bit in enumerate(columns):
        keys |= ((points[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1)) << np.uint64(position)
    return keys.astype(np.int64)


def _flips(width: int, errors: int) -> Iterator[int]:
    """Every pattern of at most ``errors`` set bits."""
    for number in range(errors + 1):
        for bits in combinations(range(width), number):
            yield sum(1 << bit for bit in bits)


def _candidates(keys: np.ndarray, starts: np.ndarray, flipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (left, right) of all pairs whose sorted ``keys`` differ in exactly the bits ``flipped``, each pair once, in chunks."""
    if flipped:
        left = np.flatnonzero(keys < keys ^ flipped)
        begin, end = starts[keys[left] ^ flipped], starts[(keys[left] ^ flipped) + 1]
    else:
        left = np.arange(len(keys))
        begin, end = left + 1, starts[keys + 1]
    some = end > begin
    left, begin, sizes = left[some], begin[some], (end - begin)[some]
    total = np.cumsum(sizes)
    start = 0
    while start < len(left):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + _CANDIDATES_AT_ONCE, side="right")))
        number = sizes[start:stop]
        offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        yield np.repeat(left[start:stop], number), np.repeat(begin[start:stop], number) + offset
        start = stop


def _verify(points: np.ndarray, left: np.ndarray, right: np.ndarray, within: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The candidates within the distance: left, right, their differing bits, and how many. Most strangers fall by the first 64 bits."""
    for word in range(3):
        near = np.bitwise_count(points[left, word] ^ points[right, word]) <= within
        left, right = left[near], right[near]
    difference = points[left] ^ points[right]
    distance = np.bitwise_count(difference).sum(axis=1, dtype=np.int64)
    near = distance <= within
    return left[near], right[near], difference[near], distance[near]


def _components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)

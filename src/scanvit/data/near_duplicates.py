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

from ..storage.scratch import Spool, pieces_of, spooled

BITS = 256
NEAR_DUPLICATE_BITS = 23
"""Largest distance of near duplicates. Measured at 64 px on 5,206 chest X-rays, 190 adult ones and 71 B-scans: 99 in 100 copies that were saved
anew as JPEG (quality 30 to 90), resized by half or by 3/4, or changed in contrast by 20 % or in gamma by 0.8 to 1.2, lie within 22 bits of
their original; the nearest images of two patients differ in 36 (drawn phantoms: 38). The larger the set, the nearer its nearest strangers."""
_CANDIDATES_AT_ONCE = 1 << 20
_LINKS_AT_ONCE = 1 << 22
_FEW_POINTS = 1 << 13
"""Up to here all pairs are compared, in less than a second. By bands, 4,000 near copies took a minute: they share nearly every band."""
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
        groups = np.arange(count)
        rows, names = self.members()
        groups[rows] = names
        return np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """(the images that are in a group, in order; for each the first image of its group), int64."""
        rows, ends = np.unique(np.concatenate([self.first, self.second]), return_inverse=True)
        first, second = np.split(ends.reshape(-1), 2)
        groups = _components(first, second, len(rows))
        heads = np.unique(groups, return_index=True)[1]
        return rows, rows[heads[groups]]


def parse_hashes(hex_digits: Sequence[str]) -> np.ndarray:
    """uint64 (N, 4) of perceptual hashes of 64 hexadecimal digits each (``data.hashing``). Raises ValueError for anything else."""
    data = bytes.fromhex("".join(hex_digits))  # skips white space
    if any(len(value) != BITS // 4 for value in hex_digits) or len(data) != BITS // 8 * len(hex_digits):
        raise ValueError("a perceptual hash does not have 64 hexadecimal digits")
    return np.frombuffer(data, np.uint64).reshape(-1, 4)


def find_near_duplicates(hashes: np.ndarray, *, within: int = NEAR_DUPLICATE_BITS) -> NearDuplicates:
    """All groups of hashes, uint64 (N, 4), that are linked by distances of at most ``within`` bits, 0..63.

    Hashes without a bit set are of flat pictures: they tell nothing, and are linked to none. Time grows with N times the neighbours by chance
    in a band, and with the square of the largest group of near copies (equal hashes count once); memory with N alone, however large the groups are.
    """
    if not 0 <= within < 64:
        raise ValueError(f"within is {within}, not 0..63")
    points, counts, heads, copies = _distinct(hashes)
    found = np.zeros(within + 1, np.int64)
    found[0] = sum(int((n * (n - 1) // 2).sum()) for n in (counts[piece].astype(np.int64) for piece in pieces_of(len(counts))))
    forest = _Forest(len(points))
    for first, second, distance in _near_pairs(points, within):
        np.add.at(found, distance, counts[first].astype(np.int64) * counts[second])
        forest.add(first, second, distance)
    first, second, distance = forest.links()
    ends = np.sort([np.concatenate([heads[first], copies[0]]), np.concatenate([heads[second], copies[1]])], axis=0)
    distance = np.concatenate([distance, np.zeros(copies.shape[1], np.int64)])
    nearest = np.lexsort((ends[1], ends[0], distance))
    return NearDuplicates(ends[0][nearest], ends[1][nearest], distance[nearest], found)


def _distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Equal hashes are one point: a thousand of them would be half a million pairs in every band.

    Returns the different hashes that have a bit set, sorted, uint64 (P, 4); how many images have each, int32 (P,); the first of these, int64
    (P,); and the others, int64 (2, C): the first one and the copy.
    """
    order = np.lexsort(tuple(hashes[:, word] for word in (3, 2, 1, 0)))
    points, counts, heads, copies = Spool(), Spool(), Spool(), Spool()
    before = np.zeros(4, np.uint64)  # the flat ones come first
    head = count = 0
    for piece in pieces_of(len(order)):
        rows = order[piece]
        values = hashes[rows]
        new = (np.concatenate([before[None], values[:-1]]) != values).any(axis=1)
        starts, before = np.flatnonzero(new), values[-1]
        owners = np.concatenate([[head], rows[starts]])[np.cumsum(new)]
        copied = ~new & values.any(axis=1)
        copies.write(np.stack([owners[copied], rows[copied]], axis=1))
        if len(starts):
            sizes = np.diff(np.append(starts, len(rows)))
            if count:
                counts.write(np.array([count + starts[0]], np.int32))
            counts.write(sizes[:-1].astype(np.int32))
            count = int(sizes[-1])
            points.write(values[starts])
            heads.write(rows[starts])
            head = int(rows[starts[-1]])
        elif count:
            count += len(rows)
    if count:
        counts.write(np.array([count], np.int32))
    return points.array(np.uint64, 4), counts.array(np.int32), heads.array(np.int64), copies.array(np.int64, 2).T


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
    return _near_pairs_of_few(points, within) if len(points) <= _FEW_POINTS else _near_pairs_by_bands(points, within)


def _near_pairs_of_few(points: np.ndarray, within: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    words = np.ascontiguousarray(points.T)
    for rows in pieces_of(len(points), max(1, _CANDIDATES_AT_ONCE // max(len(points), 1))):
        distance = np.zeros((rows.stop - rows.start, len(points) - rows.start), np.uint16)
        for word in words:
            distance += np.bitwise_count(word[rows, None] ^ word[rows.start :])
        first, second = np.nonzero(np.triu(distance <= within, k=1))
        yield first + rows.start, second + rows.start, distance[first, second].astype(np.int64)


def _near_pairs_by_bands(points: np.ndarray, within: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    bands = _plan_bands(len(points), within)
    errors = within // bands
    dealt = _deal_bits(points, bands)
    masks = np.stack([_mask_of(columns) for columns in dealt])
    for number, columns in enumerate(dealt):
        keys = _band_keys(points, columns)
        starts = np.concatenate([[0], np.bincount(keys, minlength=1 << len(columns)).cumsum()])
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys.sort()
        ordered = spooled((points[order[piece]] for piece in pieces_of(len(order))), np.uint64, 4)
        for flipped in _flips(len(columns), errors):
            for left, right in _candidates(keys, starts, flipped):
                left, right, difference, distance = _verify(ordered, left, right, within)
                # A pair that an earlier band found as well was counted there.
                seen = np.zeros(len(left), bool)
                for mask in masks[:number]:
                    seen |= np.bitwise_count(difference & mask).sum(axis=1) <= errors
                new = ~seen
                ends = np.stack([order[left[new]], order[right[new]]]).astype(np.int64)
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
    ones = np.zeros(BITS, np.int64)
    for piece in pieces_of(len(points)):
        ones += np.unpackbits(np.ascontiguousarray(points[piece]).astype("<u8").view(np.uint8), axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    order = np.argsort(np.abs(2 * ones - len(points)), kind="stable").tolist()
    return [order[band::bands] for band in range(bands)]


def _mask_of(columns: list[int]) -> np.ndarray:
    words = [0, 0, 0, 0]
    for bit in columns:
        words[bit // 64] |= 1 << (bit % 64)
    return np.array(words, np.uint64)


def _band_keys(points: np.ndarray, columns: list[int]) -> np.ndarray:
    keys = np.zeros(len(points), np.int32)
    for piece in pieces_of(len(points)):
        for position, bit in enumerate(columns):
            keys[piece] |= (((points[piece, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1)) << np.uint64(position)).astype(np.int32)
    return keys


def _flips(width: int, errors: int) -> Iterator[int]:
    """Every pattern of at most ``errors`` set bits."""
    for number in range(errors + 1):
        for bits in combinations(range(width), number):
            yield sum(1 << bit for bit in bits)


def _candidates(keys: np.ndarray, starts: np.ndarray, flipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (left, right) of all pairs whose sorted ``keys`` differ in exactly the bits ``flipped``, each pair once, in chunks."""
    for piece in pieces_of(len(keys)):
        own = keys[piece]
        other = own ^ flipped
        left = np.flatnonzero(own < other) if flipped else np.arange(len(own))
        begin, end = starts[other[left]] if flipped else left + piece.start + 1, starts[other[left] + 1]
        some = end > begin
        left, begin, sizes = left[some] + piece.start, begin[some], (end - begin)[some]
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

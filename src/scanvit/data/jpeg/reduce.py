"""Small pictures from the coefficients of large ones: the inverse transform and the antialiased resampling as one pair of small matrices.

Both are linear and separable, so output = rows * coefficients * columns, exact for the coefficients that are kept; those left out are
the frequencies that the resampling filter all but removes. All in whole numbers, which double precision holds exactly whatever the order of the
sums and however a processor fuses them: the pixels are the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .compiled import U, compiled

WEIGHT_BITS = 14
_LINES = 8
"""Made before they are written as columns: as many doubles as the cache takes at once."""
_COSINES = (1073741824, 1053110176, 992008094, 892783698, 759250125, 596538995, 410903207, 209476638)
"""round(2**30 * cos(i * pi / 16))."""
_ROOT = 759250125
"""round(2**30 / sqrt(2))."""
_TO_SIXTEENTHS = 2.0 ** (4 - 2 * WEIGHT_BITS)


class Weights(NamedTuple):
    """What each block's coefficients along one axis add to each output pixel."""

    first: np.ndarray
    """int64 (target,): the first block that matters."""
    counts: np.ndarray
    """int64 (target,): how many do."""
    values: np.ndarray
    """float64 (target, blocks, order): whole numbers, in units of 2 ** -WEIGHT_BITS."""


@lru_cache
def zigzag(order: int) -> tuple[np.ndarray, int]:
    """(int64 (order, order): the place in zigzag order of vertical frequency v, horizontal u, where u + v < order; how many those are)."""
    places = np.zeros((order, order), np.int64)
    place = 0
    for diagonal in range(order):
        for step in range(diagonal + 1):
            v = step if diagonal % 2 else diagonal - step
            places[v, diagonal - v] = place
            place += 1
    return places, place


@lru_cache(maxsize=256)
def weights(size_px: int, target_px: int, order: int, repeat: int) -> Weights:
    """Of the antialiased bilinear filter from ``size_px`` to no more ``target_px``, for blocks of 8 samples that are ``repeat`` pixels each."""
    return Weights(*_weights(size_px, target_px, order, 8 * repeat, np.array(_COSINES), _ROOT))


@compiled
def _weights(size, target, order, block, cosines, root):
    # A pixel's share is 1 - |distance of the centres| * target / size, times 2 * size to be whole.
    longest = (2 * size // target + 2) // block + 2
    first, counts = np.zeros(target, np.int64), np.zeros(target, np.int64)
    values = np.zeros((target, longest, order))
    sums = np.zeros((longest, order), np.int64)
    for index in range(target):
        centre = (2 * index + 1) * size
        low = max(0, (centre - 2 * size) // (2 * target))
        high = min(size, (centre + 2 * size) // (2 * target) + 1)
        total = 0
        sums[:] = 0
        first[index] = low // block
        for pixel in range(low, high):
            share = 2 * size - abs((2 * pixel + 1) * target - centre)
            if share <= 0:
                continue
            total += share
            place, sample = pixel // block - first[index], pixel % block * 8 // block
            counts[index] = place + 1
            for frequency in range(order):
                sums[place, frequency] += share * _basis(sample, frequency, cosines, root)
        for place in range(counts[index]):
            for frequency in range(order):
                # 2 ** 31 for the cosines (the transform's factor 1/2 included), less the bits that stay; rounded.
                divisor = total << (31 - 14)
                values[index, place, frequency] = (2 * sums[place, frequency] + divisor) // (2 * divisor)
    return first, counts, values


@compiled
def _basis(sample, frequency, cosines, root):
    """2 ** 30 * cos((2 * sample + 1) * frequency * pi / 16), or the constant of frequency 0."""
    if frequency == 0:
        return root
    angle = (2 * sample + 1) * frequency % 32
    angle = 32 - angle if angle > 16 else angle
    return cosines[angle] if angle < 8 else (0 if angle == 8 else -cosines[16 - angle])


@compiled
def resample(coefficients, steps, rows, places, first_x, counts_x, values_x, first_y, counts_y, values_y):
    """int16 coefficients (place in zigzag order, blocks down, blocks across) that the quantization ``steps`` multiply, to int64 (H, W): the picture
    in sixteenths, around 0. ``rows`` is memory for order * blocks across * H
    doubles. Where damaged coefficients are out of all bounds, so is the picture, but the same on every machine."""
    order, target, height, width = places.shape[0], first_x.size, coefficients.shape[1], coefficients.shape[2]
    flat = coefficients.reshape(-1)
    lines, sums = np.empty((_LINES, width), np.int32), np.empty(target)
    for top in range(0, target, _LINES):
        several = min(_LINES, target - top)
        for u in range(order):
            lines[:] = 0
            for index in range(several):
                y = top + index
                for place in range(counts_y[y]):
                    for v in range(order - u):
                        weight = np.int32(values_y[y, place, v] * steps[places[v, u]])
                        start = U((places[v, u] * height + first_y[y] + place) * width)
                        for x in range(width):
                            lines[index, x] += weight * flat[start + U(x)]
            for x in range(width):
                start = U((u * width + x) * target + top)
                for index in range(several):
                    rows[start + U(index)] = lines[index, x]
    picture = np.empty((target, target), np.int64)
    for x in range(target):
        sums[:] = 0.0
        for place in range(counts_x[x]):
            for u in range(order):
                weight, start = values_x[x, place, u], U((u * width + first_x[x] + place) * target)
                for y in range(target):
                    sums[y] += weight * rows[start + U(y)]
        for y in range(target):
            picture[y, x] = np.int64(np.floor(sums[y] * _TO_SIXTEENTHS + 0.5))
    return picture


@compiled
def to_gray(luma):
    """int64 (H, W) in sixteenths around 0 to uint8 (1, H, W)."""
    height, width = luma.shape
    pixels = np.empty((1, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            pixels[0, y, x] = min(255, max(0, (luma[y, x] + 2056) >> 4))
    return pixels


@compiled
def to_rgb(luma, blue, red):
    """The same of three planes, to (3, H, W) by JFIF's matrix in whole numbers."""
    height, width = luma.shape
    pixels = np.empty((3, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            gray, cb, cr = (luma[y, x] + 2056) << 16, blue[y, x], red[y, x]
            pixels[0, y, x] = min(255, max(0, (gray + 91881 * cr) >> 20))
            pixels[1, y, x] = min(255, max(0, (gray - 22554 * cb - 46802 * cr) >> 20))
            pixels[2, y, x] = min(255, max(0, (gray + 116130 * cb) >> 20))
    return pixels

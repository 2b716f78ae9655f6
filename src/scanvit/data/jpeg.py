"""JPEG files straight to small pictures: the lowest coefficients of each block, resampled without ever making the large picture.

For baseline files (``data.jpeg_header``) at least three times as large as the target, gray or YCbCr. Against decoding everything and resampling with
Pillow, pixels differ by 0.1 to 0.5 of 255 on average (benchmarks/data.py). Any other file, or one with a fault, is left to Pillow, which has the
last word on what is an image.
"""

from __future__ import annotations

import numpy as np

from ..core.contract import PixelContract
from .compiled import PAD_BYTES
from .jpeg_header import JpegFile
from .jpeg_reduce import resample, to_gray, to_rgb, weights, zigzag
from .jpeg_scan import find_blocks, read_coefficients, take_bits
from .jpeg_tables import Tables, tables


def reduced_pixels(data: bytes, file: JpegFile, contract: PixelContract) -> np.ndarray | None:
    """uint8 (C, H, W) of the contract's shape, as the file has them (no orientation applied), or None where the scan is not what the header says."""
    lookup = tables(*file.codes)
    if lookup is None:
        return None
    across, down = file.sampling
    units_across, units_down = -(-file.width_px // (8 * across)), -(-file.height_px // (8 * down))
    own_blocks = across * down
    unit = np.array([0] * own_blocks + [1] * (file.components - 1), np.uint64)
    scan = _blocks(data, file, lookup, unit, units_across * units_down)
    if scan is None:
        return None
    stream, places = scan
    wanted = 1 if contract.channels == 1 else file.components
    planes = []
    for component in range(wanted):
        own = (across, down) if component == 0 else (1, 1)
        repeat = (1, 1) if component == 0 else (across, down)
        order = _order(file, contract, min(repeat))
        zigzag_places, count = zigzag(order)
        coefficients = np.zeros((count + 1, units_down * own[1], units_across * own[0]), np.int16)
        steps = np.frombuffer(file.quantization[component], np.uint8).astype(np.float64)
        first = 0 if component == 0 else own_blocks + component - 1
        shape = (len(unit), first, *own, units_across, file.restart_interval)
        if not read_coefficients(
            stream, places, *shape, count, min(component, 1), lookup.dc, lookup.dc_short, lookup.ac, lookup.ac_steps, lookup.lowest, coefficients
        ):
            return None
        x = weights(file.width_px, contract.image_size_px, order, repeat[0])
        y = weights(file.height_px, contract.image_size_px, order, repeat[1])
        planes.append(resample(coefficients, steps, zigzag_places, *x, *y))
    if len(planes) == 3:
        return to_rgb(*planes)
    gray = to_gray(planes[0])
    return gray if contract.channels == 1 else np.repeat(gray, 3, axis=0)


def _order(file: JpegFile, contract: PixelContract, repeat: int) -> int:
    """How many frequencies along each axis. The filter's response is zero at frequency 16 / reduction of the 8 of a block, and little after it;
    fewer than two would blur edges."""
    reduction = min(file.width_px, file.height_px) / (repeat * contract.image_size_px)
    return min(8, max(2, round(16 / reduction)))


def _blocks(data: bytes, file: JpegFile, lookup: Tables, unit: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(the bits of all segments, where their blocks begin)."""
    interval = file.restart_interval or units
    ends = np.empty(-(-units // interval), np.int64)
    stream = np.empty(len(data) - file.scan_start + PAD_BYTES, np.uint8)
    if not take_bits(np.frombuffer(data, np.uint8), file.scan_start, stream, ends):
        return None
    places = np.empty(units * len(unit) + 1, np.uint64)
    begin = 0
    for index, end in enumerate(ends.tolist()):
        part = places[index * interval * len(unit) : (index + 1) * interval * len(unit) + 1]
        if not find_blocks(stream, 8 * begin, 8 * end, unit, part, lookup.dc, lookup.ac, lookup.skips):
            return None
        begin = end
    return stream, places

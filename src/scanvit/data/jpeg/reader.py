"""JPEG files straight to small pictures: the lowest coefficients of each block, resampled without ever making the large picture.

For sequential files (``header``) at least three times as large as the target, gray or YCbCr. Against decoding everything and resampling with
Pillow, pixels differ by 0.1 to 0.5 of 255 on average (benchmarks/data.py). Any other file, or one with a fault, is left to Pillow, which has the
last word on what is an image.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from ...core.contract import PixelContract
from .compiled import CODE, PAD_BYTES
from .header import JpegFile, read_jpeg
from .lanes import LANES
from .reduce import resample, to_gray, to_rgb, weights, zigzag
from .scan import GROUPS, find_blocks, log_room, read_coefficients, take_bits
from .tables import Tables, tables

_KEPT_BYTES = 8 << 20


class _Scratch(threading.local):
    """Memory that a thread uses again for image after image: fresh pages cost a tenth of the time."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int, dtype: type[np.generic]) -> np.ndarray:
        """Whatever was in it."""
        array = self._kept.get(name)
        if array is None or array.size < size:
            array = np.empty(size, dtype)
            if array.nbytes <= _KEPT_BYTES:
                self._kept[name] = array
        return array[:size]


_SCRATCH = _Scratch()


@dataclass(frozen=True)
class _Scan:
    stream: np.ndarray
    """The bits."""
    places: np.ndarray
    """Where their blocks begin, and the end."""
    blocks: int
    """Of a minimum coded unit."""
    units: tuple[int, int]
    """Across and down."""
    lookup: Tables


@cache
def _compile() -> None:
    CODE.once(_compile_all)


def _compile_all() -> None:
    for mode, channels in (("L", 1), ("RGB", 3)):
        stream = io.BytesIO()
        Image.new(mode, (32, 32), 99).save(stream, "JPEG")
        file = read_jpeg(stream.getvalue())
        assert file is not None
        assert _pixels(stream.getvalue(), file, PixelContract(image_size_px=8, channels=1 if channels == 1 else 3)) is not None


def reduced_pixels(data: bytes, file: JpegFile, contract: PixelContract) -> np.ndarray | None:
    """uint8 (C, H, W) of the contract's shape, as the file has them (no orientation applied), or None where the scan is not what the header says.

    The first call in a process loads the machine code (0.3 s), the first on a machine makes it."""
    _compile()
    return _pixels(data, file, contract)


def _pixels(data: bytes, file: JpegFile, contract: PixelContract) -> np.ndarray | None:
    scan = _read_scan(data, file)
    if scan is None:
        return None
    planes = []
    for component in range(1 if contract.channels == 1 else file.components):
        plane = _plane(component, scan, file, contract.image_size_px)
        if plane is None:
            return None
        planes.append(plane)
    if len(planes) == 3:
        return to_rgb(*planes)
    gray = to_gray(planes[0])
    return gray if contract.channels == 1 else np.repeat(gray, 3, axis=0)


def _read_scan(data: bytes, file: JpegFile) -> _Scan | None:
    lookup = tables(*file.codes)
    across, down = file.sampling
    units = (-(-file.width_px // (8 * across)), -(-file.height_px // (8 * down)))
    unit = np.array([0] * (across * down) + [1] * (file.components - 1), np.uint64)
    blocks = units[0] * units[1] * len(unit)
    if lookup is None or 4 * len(data) < blocks:  # a block has two bits or more
        return None
    stream = _SCRATCH.take("stream", len(data) - file.scan_start + PAD_BYTES, np.uint8)
    size = take_bits(np.frombuffer(data, np.uint8), file.scan_start, stream)
    if not size:
        return None
    places = _SCRATCH.take("places", blocks + 1, np.uint64)
    room = log_room(blocks)
    logs = _SCRATCH.take("logs", GROUPS * room, np.uint64).reshape(GROUPS, room)
    lists = _SCRATCH.take("lists", GROUPS * (room + LANES), np.uint64)
    if not find_blocks(stream, size, unit, places, logs, lists, lookup.dc, lookup.ac, lookup.skips):
        return None
    return _Scan(stream, places, len(unit), units, lookup)


def _plane(component: int, scan: _Scan, file: JpegFile, target_px: int) -> np.ndarray | None:
    """int64 (H, W), one component in sixteenths around 0."""
    own, repeat = (file.sampling, (1, 1)) if component == 0 else ((1, 1), file.sampling)
    order = _order(min(file.width_px / repeat[0], file.height_px / repeat[1]) / target_px)
    zigzag_places, count = zigzag(order)
    columns, rows = scan.units[0] * own[0], scan.units[1] * own[1]
    coefficients = _SCRATCH.take("coefficients", (count + 1) * rows * columns, np.int16).reshape(count + 1, rows, columns)
    coefficients[:] = 0
    first = 0 if component == 0 else scan.blocks - 3 + component
    shape = (scan.blocks, first, *own, scan.units[0], count, min(component, 1))
    lookup = scan.lookup
    known = (lookup.dc, lookup.dc_short, lookup.ac, lookup.ac_steps, lookup.lowest)
    if not read_coefficients(scan.stream, scan.places, *shape, *known, coefficients):
        return None
    steps = np.frombuffer(file.quantization[component], np.uint8).astype(np.float64)
    memory = _SCRATCH.take("rows", order * columns * target_px, np.float64)
    across = weights(file.width_px, target_px, order, repeat[0])
    down = weights(file.height_px, target_px, order, repeat[1])
    return resample(coefficients, steps, memory, zigzag_places, *across, *down)


def _order(reduction: float) -> int:
    """How many frequencies along each axis. The filter's response is zero at frequency 16 / reduction of the 8 of a block, and little after it;
    fewer than two would blur edges."""
    return min(8, max(2, round(16 / max(reduction, 1))))

"""The structure of a JPEG file (ITU-T T.81, Annex B), as far as ``data.jpeg`` reads it: sequential with Huffman codes, 8 bits, gray or YCbCr, one scan.

Whatever else a file is or has wrong with it, the answer is None, and the file is left to Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_SOS, _SOF0, _SOF1, _DHT, _DQT, _DRI, _COM, _APP0, _APP14 = 0xDA, 0xC0, 0xC1, 0xC4, 0xDB, 0xDD, 0xFE, 0xE0, 0xEE
_CACHED_BYTES = 4096
_APPS = range(0xE0, 0xF0)
_SAMPLINGS = {(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)}


@dataclass(frozen=True)
class JpegFile:
    width_px: int
    height_px: int
    sampling: tuple[int, int]
    """Blocks of the first component in a minimum coded unit, across and down. (1, 1) where there is no other component."""
    components: int
    """1 or 3."""
    quantization: tuple[bytes, ...]
    """A component each, 64 steps in zigzag order."""
    codes: tuple[tuple[bytes, bytes], ...]
    """Huffman tables as ``tables.tables`` takes them."""
    scan_start: int
    """The first byte of the coefficients' bits."""
    metadata: bool
    """Whether there are segments that may say how the picture lies."""


@dataclass
class _Segments:
    """What the markers before the scan have said."""

    quantization: dict[int, bytes]
    huffman: dict[int, bytes]
    """By class << 4 | identifier."""
    frame: bytes = b""
    jfif: bool = False
    adobe: int | None = None
    metadata: bool = False


def read_jpeg(data: bytes) -> JpegFile | None:
    """Never raises. The pixels of a file that is returned are only right if its scan proves to be whole."""
    # Most files of a source have the same header, and most headers no other such bytes than those of the scan's.
    start = data.find(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    file = _read_header(data[:end]) if start >= 0 and end < _CACHED_BYTES else None
    return file or _read_header.__wrapped__(data)


@lru_cache(maxsize=256)
def _read_header(data: bytes) -> JpegFile | None:
    try:
        return _read(data)
    except (IndexError, KeyError):  # cut short, or a table that was never given
        return None


def _read(data: bytes) -> JpegFile | None:
    if data[:2] != b"\xff\xd8":
        return None
    found, place = _Segments({}, {}), 2
    while True:
        if data[place] != 0xFF:
            return None
        marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : end]
        if end > len(data) or end < place + 4 or not (marker == _SOS or _take(marker, body, found)):
            return None
        if marker == _SOS:
            return _file(found, body, end)
        place = end


def _take(marker: int, body: bytes, found: _Segments) -> bool:
    """Whether the segment is one that is understood."""
    if marker == _DQT:
        return _take_quantization(body, found)
    if marker == _DHT:
        return _take_huffman(body, found)
    if marker in (_SOF0, _SOF1) and not found.frame:
        found.frame = body
        return True
    if marker == _DRI:
        return body == b"\0\0"  # no restart markers
    if marker == _APP0 and body.startswith(b"JFIF\0"):
        found.jfif = True
        return len(body) >= 14
    if marker == _APP14 and body.startswith(b"Adobe"):
        found.adobe = body[11]
        return True
    found.metadata |= marker in _APPS
    return marker in _APPS or marker == _COM


def _take_quantization(body: bytes, found: _Segments) -> bool:
    for start in range(0, len(body), 65):
        if body[start] > 3 or len(body) < start + 65:  # steps of 16 bits have 16 here, and 12-bit samples need them
            return False
        found.quantization[body[start]] = body[start + 1 : start + 65]
    return True


def _take_huffman(body: bytes, found: _Segments) -> bool:
    start = 0
    while start < len(body):
        end = start + 17 + sum(body[start + 1 : start + 17])
        if body[start] & 0xEF > 3 or end > len(body):
            return False
        found.huffman[body[start]] = body[start + 1 : end]
        start = end
    return True


def _file(found: _Segments, scan: bytes, start: int) -> JpegFile | None:
    frame, count = found.frame, len(found.frame) // 3 - 2
    if count not in (1, 3) or len(frame) != 6 + 3 * count or frame[0] != 8 or frame[5] != count:
        return None
    parts = [frame[6 + 3 * index : 9 + 3 * index] for index in range(count)]
    sampling = (parts[0][1] >> 4, parts[0][1] & 15)
    if sampling not in _SAMPLINGS or any(part[1] != 0x11 for part in parts[1:]):
        return None
    if count == 3 and not (found.adobe == 1 or (found.adobe is None and (found.jfif or [part[0] for part in parts] == [1, 2, 3]))):
        return None  # not YCbCr, or not surely
    # All components in one scan, in their order, all coefficients at once.
    order = bytes(value for part, table in zip(parts, scan[2 : 2 + 2 * count : 2], strict=True) for value in (part[0], table))
    if scan != bytes([count]) + order + b"\0\x3f\0" or len({part[0] for part in parts}) < count or order[3::2] != order[3:4] * (count - 1):
        return None
    codes = [(found.huffman[table >> 4], found.huffman[0x10 | table & 15]) for table in order[1::2][:2]]
    height_px, width_px = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    if not height_px or not width_px:
        return None
    return JpegFile(
        width_px=width_px,
        height_px=height_px,
        sampling=sampling if count == 3 else (1, 1),
        components=count,
        quantization=tuple(found.quantization[part[2]] for part in parts),
        codes=tuple(codes),
        scan_start=start,
        metadata=found.metadata,
    )

"""The shape that a compressed frame's own header claims, read without decoding it."""

from __future__ import annotations

import struct

from ...core.errors import ImageError

_JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Start of frame, of every JPEG process (ITU-T T.81, table B.1) and of JPEG-LS (T.87); DHT, JPG and DAC lie between them."""
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_J2K = b"\xff\x4f\xff\x51"
"""SOC and SIZ: a JPEG 2000 codestream's first two markers (ITU-T T.800, annex A)."""


def codestream_shape(data: bytes) -> tuple[int, int, int]:
    """(width, height, components) of a JPEG, JPEG-LS or JPEG 2000 codestream. Raises ImageError where there is none."""
    try:
        return _jpeg_2000(data) if data[:2] != b"\xff\xd8" else _jpeg(data)
    except (struct.error, IndexError):
        raise ImageError("A compressed frame has no readable header.", hint="Fetch or export the image again.") from None


def _jpeg_2000(data: bytes) -> tuple[int, int, int]:
    # Within a JP2 file, which some writers leave around the codestream, the boxes before it are short.
    start = data.index(_J2K, 0, 4096) if _J2K in data[:4096] else None
    if start is None:
        raise IndexError
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    return right - left, bottom - top, components


def _jpeg(data: bytes) -> tuple[int, int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise IndexError
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _JPEG_SIZES:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return width, height, components
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            at += 2 + max(length, 2)

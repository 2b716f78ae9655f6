"""JPEG files for the tests of the room, and damage to them."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image


def scene(width: int, height: int, mode: str = "L", *, noise: float = 12.0) -> Image.Image:
    """Smooth shapes with edges and noise, no symmetry; coloured where ``mode`` is."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    planes = [120 + 70 * np.sin(5 * x + 3 * y * y + shift) + 50 * ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.05) for shift in (0.0, 0.7, 1.9)]
    pixels = np.stack(planes, axis=-1) + noise * np.random.default_rng(width * height).normal(size=(height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pillow(data: bytes, target_px: int, mode: str = "L") -> np.ndarray:
    """Everything decoded, then resized: int (C, H, W)."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode).resize((target_px, target_px), Image.Resampling.BILINEAR)).astype(int)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


CHANGES = st.lists(st.tuples(st.sampled_from(["flip", "set", "remove", "insert", "cut"]), st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=8)


def damage(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    """Half of the places lie in the header."""
    raw = bytearray(data)
    for operation, place, value in changes:
        header = max(1, raw.find(b"\xff\xda") + 14)
        at = (place >> 1) % (min(header, len(raw)) if place & 1 else len(raw))
        match operation:
            case "flip":
                raw[at] ^= 1 << value % 8
            case "set":
                raw[at] = value
            case "remove" if len(raw) > 100:
                del raw[at : at + 1 + value % 9]
            case "insert":
                raw[at:at] = bytes([value]) * (1 + value % 9)
            case "cut" if value < 8:  # the end of the image stays, so that the scan is looked at
                raw[max(at, 2) : -2] = b""
    return bytes(raw)

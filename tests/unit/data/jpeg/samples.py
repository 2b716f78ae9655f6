"""JPEG files for the tests of the room, and damage to them."""

from __future__ import annotations

import hashlib
import io
import random

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.data.jpeg.header import read_jpeg
from scanvit.data.jpeg.reader import reduced_pixels


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


OPERATIONS = ["flip", "set", "remove", "insert", "cut"]
CHANGES = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=8)


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


def samples() -> list[bytes]:
    return [
        jpeg(scene(100, 90, noise=30), quality=95),
        jpeg(scene(130, 120, "RGB"), subsampling="4:2:0"),
        jpeg(scene(120, 64, "RGB", noise=60), quality=97, subsampling="4:4:4", optimize=True),
        jpeg(scene(600, 300, noise=20), quality=80),
    ]


def digest(cases: int) -> str:
    """Of the pixels of whole and damaged files."""
    found, whole, chance = hashlib.sha256(), samples(), random.Random(0)
    for index in range(cases):
        changes = [(chance.choice(OPERATIONS), chance.randrange(2**31), chance.randrange(256)) for _ in range(index % 3)]
        data = damage(whole[index % len(whole)], changes)
        file = read_jpeg(data)
        if file is not None and file.width_px * file.height_px < 1 << 22:
            pixels = reduced_pixels(data, file, PixelContract(image_size_px=8, channels=3))
            found.update(b"none" if pixels is None else pixels.tobytes())
    return found.hexdigest()

"""What tells images apart: a hash of the bytes, and a hash of what they look like."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

_SIDE = 64
_LOW = 16


def sha256_bytes(data: bytes | memoryview) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """256 bits of a picture's coarse structure, as 64 hexadecimal digits; near duplicates differ in few bits.

    ``pixels``: uint8 (C, H, W). The 16 x 16 lowest frequencies of the cosine transform of a 64 x 64 gray thumbnail, each against their
    median; the mean (DC) is left out and its bit is 0 (after Zauner 2010, section 3.2.1, with 256 bits in place of 64).
    """
    gray = pixels[0] if len(pixels) == 1 else np.asarray(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L"))
    if gray.shape != (_SIDE, _SIDE):
        gray = np.asarray(Image.fromarray(np.ascontiguousarray(gray)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    # Rounded, so that a flat picture's noise of the last digits cannot set bits differently from machine to machine.
    low = np.round(_BASIS @ gray.astype(np.float64) @ _BASIS.T, 4).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


def _cosine_basis() -> np.ndarray:
    """The first 16 rows of the orthonormal DCT-II matrix of size 64."""
    frequency, position = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    basis = np.sqrt(2.0 / _SIDE) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE))
    basis[0] /= np.sqrt(2.0)
    return basis


_BASIS = _cosine_basis()

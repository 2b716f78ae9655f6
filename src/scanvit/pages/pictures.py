"""Pixels as the source of an ``<img>``: a page with pictures stays one file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt


def png_data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """(C, H, W) uint8, gray, RGB or RGBA."""
    return _data_uri(pixels, "PNG", optimize=True)


def jpeg_data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """(C, H, W) uint8, gray or RGB: of pictures of many pixels, a fifth of the bytes."""
    return _data_uri(pixels, "JPEG", quality=82, optimize=True)


def _data_uri(pixels: npt.NDArray[np.uint8], kind: str, **settings: Any) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **settings)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

"""What phantom X-rays and phantom B-scans share: smooth edges, correlated noise, and the way from a drawing to pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating[Any]]
"""Numbers over the pixels of a drawing, (H, W) or what broadcasts to it."""


def edge(distance: Plane, width: float) -> Plane:
    """A soft step: 0 where ``distance`` is well below 0, 1 where it is well above, rising over about ``width``."""
    return (0.5 + 0.5 * np.tanh(np.float32(1.5 / width) * distance)).astype(np.float32)


def bump(distance: Plane, radius: float) -> Plane:
    """A bell of height 1 at distance 0 that is down to 0.6 at ``radius``."""
    return np.exp(np.float32(-0.5) * np.square(distance / np.float32(radius)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]) -> Plane:
    """Noise (H, W) of mean 0 and standard deviation about 1 with ``cells`` grains down and across."""
    coarse = rng.standard_normal((max(2, round(cells[0])), max(2, round(cells[1]))), dtype=np.float32)
    noise = resize(coarse, shape)
    return noise / np.float32(noise.std() + 1e-6)


def resize(plane: Plane, shape: tuple[int, int]) -> Plane:
    """(h, w) float -> ``shape``, bicubic, antialiased when it gets smaller."""
    height_px, width_px = shape
    return np.asarray(Image.fromarray(plane.astype(np.float32, copy=False)).resize((width_px, height_px), Image.Resampling.BICUBIC))


def to_pixels(tone: Plane) -> NDArray[np.uint8]:
    """0..1 -> uint8 0..255; what lies outside is clipped as a saturated detector would."""
    return (np.clip(tone, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)

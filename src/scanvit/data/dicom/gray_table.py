"""Stored values of a gray DICOM image to 0..255: modality, VOI and polarity, as one table (PS3.3, C.11.1, C.11.2 and C.7.6.3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...core.errors import ImageError

_LEAST, _MOST = 1e-9, 1e9
"""Of slopes, widths and the like, in magnitude: no device comes near, and nothing overflows between them. NaN is not between them."""
_HINT = "Export the image again, or without this setting."


@dataclass(frozen=True, kw_only=True)
class Rescale:
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lut:
    """A lookup table: values up to ``first`` map to its first entry, those past its end to the last."""

    first: int
    bits: int
    """Of an entry: entries range over 0 .. 2**bits - 1."""
    entries: np.ndarray

    def look_up(self, values: np.ndarray) -> np.ndarray:
        return self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.intp)].astype(np.float64)

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True, kw_only=True)
class Window:
    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    def apply(self, values: np.ndarray) -> np.ndarray:
        """0..1, by the formulas of PS3.3, C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, None, 700.0)))
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1.0
            if width == 0:
                return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def gray_table(lowest: int, highest: int, *, modality: Rescale | Lut, voi: Window | Lut | None, inverted: bool) -> np.ndarray:
    """The gray of each stored value ``lowest`` .. ``highest``. float32 (highest - lowest + 1,) in 0..255, 255 white.

    Without a window or VOI table the range from ``lowest`` to ``highest`` (of a modality table: all that an entry can be) maps to 0..255.
    ``inverted``: MONOCHROME1, where the lowest value is white. Raises ImageError for a setting without a meaning.
    """
    values = np.arange(lowest, highest + 1, dtype=np.float64)
    if isinstance(modality, Lut):
        values, span = modality.look_up(values), (0.0, float(modality.top))
    else:
        if not (_LEAST <= abs(modality.slope) <= _MOST and abs(modality.intercept) <= _MOST):
            raise ImageError(f"The rescale slope {modality.slope:g} and intercept {modality.intercept:g} give no gray.", hint=_HINT)
        values = values * modality.slope + modality.intercept
        span = (float(values.min()), float(values.max()))
    if voi is None:
        shares = (values - span[0]) / ((span[1] - span[0]) or 1.0)
    elif isinstance(voi, Lut):
        shares = voi.look_up(values) / voi.top
    else:
        if not (abs(voi.center) <= _MOST and (1.0 if voi.function == "LINEAR" else _LEAST) <= voi.width <= _MOST):
            raise ImageError(f"The window of center {voi.center:g} and width {voi.width:g} shows nothing.", hint=_HINT)
        shares = voi.apply(values)
    shares = np.clip(shares, 0.0, 1.0)
    return ((1.0 - shares if inverted else shares) * 255.0).astype(np.float32)

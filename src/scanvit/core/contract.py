"""The pixel contract: everything that turns the bytes of an image into the numbers a network sees.

One contract travels in every pack, checkpoint and export, so that training and prediction cannot drift apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PixelContract:
    """Decoding: gray or RGB, squashed to a square by antialiased resampling, stored as uint8 in 0..255.

    Normalising: ``x = (pixel / 255 - mean) / std`` in float32, per channel with one mean and one std.
    """

    image_size_px: int = 64
    """Height and width after resizing."""
    channels: Literal[1, 3] = 1
    """1 (gray) or 3 (RGB)."""
    resample: Literal["bilinear"] = "bilinear"
    """Antialiased (the filter's support grows with the reduction)."""
    jpeg: Literal["frequencies", "reduced"] = "frequencies"
    """How a JPEG much larger than the target is resampled: from the lowest frequencies of its blocks, or from the picture that libjpeg reduces while
    decoding. They differ by less than 1 of 255 on average. Packs and checkpoints that do not say are from versions that only knew "reduced"; it
    stays what their images are prepared and predicted with."""
    mean: float = 0.5
    """Of pixels scaled to 0..1."""
    std: float = 0.5
    """Of pixels scaled to 0..1."""

    def __post_init__(self) -> None:
        if not 8 <= self.image_size_px <= 4096:
            raise ConfigError(f"image_size_px is {self.image_size_px}.", hint="Use a value from 8 to 4096.")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels}.", hint="Use 1 (gray) or 3 (RGB).")
        if self.resample != "bilinear":
            raise ConfigError(f"resample is {self.resample!r}.", hint="Use 'bilinear'.")
        if self.jpeg not in ("frequencies", "reduced"):
            raise ConfigError(f"jpeg is {self.jpeg!r}.", hint="Use 'frequencies', or 'reduced' for the pixels of earlier packs.")
        if not self.std > 0:
            raise ConfigError(f"std is {self.std}.", hint="Use a value above 0.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image in the pack."""
        return (self.channels, self.image_size_px, self.image_size_px)

    def normalize(self, images: Any) -> Any:
        """uint8 torch tensor (..., C, H, W) in 0..255 -> float32 on the same device."""
        return images.float().div_(255.0).sub_(self.mean).div_(self.std)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of ``from_dict``. "reduced" is left out, as earlier versions did: their fingerprints hold."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("jpeg", "reduced")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PixelContract:
        """Raises ConfigError for a key that this version does not know: a silent default would change pixels."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"The pixel contract holds {unknown[0]!r}, which this version of scanvit does not know.",
                hint="Use the version of scanvit that wrote it, or a newer one.",
            )
        return cls(**{"jpeg": "reduced", **values})

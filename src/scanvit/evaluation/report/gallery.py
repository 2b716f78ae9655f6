"""The pictures of a report: the images themselves, and over them the maps of where the network looked. As many as the page's budget takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...pages.pictures import jpeg_data_uri, png_data_uri
from ..masking import cover, shown_parts
from ..saliency import Case

if TYPE_CHECKING:
    from ...data.pack import Pack
    from ..predictions import Predictions

BUDGET_BYTES = 2_000_000
"""Of all pictures and maps of a page."""
MOST_PX = 384
"""Of an original in the page."""
_JPEG_FROM_PX = 128
# From transparent over amber to red, RGBA, at map values 0, 0.35, 0.7 and 1: light and dark films both stay visible beneath.
_RAMP = np.array([[255, 214, 64, 0], [255, 190, 40, 70], [255, 110, 20, 150], [224, 24, 24, 190]], np.float64)
_RAMP_AT = (0.0, 0.35, 0.7, 1.0)
_TITLES = {"relevance": "relevance", "rollout": "attention rollout", "occlusion": "occlusion"}


def album(
    cases: Sequence[Case], predictions: Predictions, images: npt.NDArray[np.uint8], originals: Mapping[int, npt.NDArray[np.uint8]]
) -> list[dict[str, Any]]:
    """What the page shows of each case, in their order. ``images`` (N, C, H, W): the split's; ``originals``: {row: (C, side, side)}."""
    certainty = predictions.probs[np.arange(len(predictions)), predictions.predicted]
    shown: list[dict[str, Any]] = []
    size_bytes = 0
    for case in cases:
        i = case.row
        picture = originals.get(i)
        uri = picture_uri(np.array(images[i]) if picture is None else picture)
        maps = [{"method": method, "title": _TITLES[method], "uri": overlay_uri(values)} for method, values in case.maps.items()]
        size_bytes += len(uri) + sum(len(drawn["uri"]) for drawn in maps)
        if shown and size_bytes > BUDGET_BYTES:
            break
        truth, called = int(predictions.targets[i]), int(predictions.predicted[i])
        shown.append(
            {
                "is_right": case.is_right,
                "uri": uri,
                "maps": maps,
                "side_px": images.shape[-1] if picture is None else picture.shape[-1],
                "is_original": picture is not None,
                "image_id": predictions.image_ids[i],
                "truth": predictions.class_names[truth],
                "called": predictions.class_names[called],
                "called_probability": float(certainty[i]),
                "truth_probability": float(predictions.probs[i, truth]),
                "outlier_score": None if predictions.outlier_scores is None else float(predictions.outlier_scores[i]),
            }
        )
    return shown


def covered_examples(cases: Sequence[Case], images: npt.NDArray[np.uint8], pack: Pack) -> dict[str, str]:
    """{view of ``masking``: one image as the network saw it there}."""
    case = next((case for case in cases if case.is_right), cases[0] if cases else None)
    pixels = np.array(images[[case.row if case else 0]])
    return {name: picture_uri(cover(pixels, part)[0]) for name, part in shown_parts(pack.contract.image_size_px).items()}


def picture_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """(C, H, W)"""
    return jpeg_data_uri(pixels) if pixels.shape[-1] >= _JPEG_FROM_PX else png_data_uri(pixels)


def overlay_uri(values: npt.NDArray[np.float32]) -> str:
    """A map (h, w), 0..1, as a picture of that many pixels to be stretched over the image: clear where the network did not look."""
    channels = [np.interp(values, _RAMP_AT, _RAMP[:, c]) for c in range(4)]
    return png_data_uri(np.stack(channels).round().astype(np.uint8))

"""One image or volume after the other through the network, and pictures of where it looked. Nothing is kept."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import RequestError
from ..data.decode import decode_frames, volume_size
from ..evaluation.judgement import judge
from .answers import Judgement, Pictures, Reading

if TYPE_CHECKING:
    from ..evaluation.engine import Engine

MOST_FRAMES, MOST_PIXELS = 256, 1 << 28
"""Of a volume: 256 frames of 1,024 x 1,024."""
_PICTURE_PX = 512
_HEAT = (255, 106, 0)
_MOST_OPAQUE = 190


def read_image(engine: Engine, data: bytes, *, first_reading: str | None, frame: int, pictures: bool) -> Reading:
    """``frame``: from 1, of which pictures are made. Raises ImageError for bytes that are no image, RequestError for too many frames or no such one."""
    frames, size_px = volume_size(data)
    if frames > MOST_FRAMES or size_px > MOST_PIXELS:  # a megabyte may hold thousands, which take a minute
        hint = "Classify it with 'scanvit predict', which takes any number."
        raise RequestError(f"The file holds {frames} frames with {size_px:,} pixels; {MOST_FRAMES} and {MOST_PIXELS:,} are allowed.", hint=hint, status=413)
    decoded = decode_frames(data, engine.contract)
    if frame > len(decoded):
        raise RequestError(f"There is no frame {frame}: the file holds {len(decoded)}.", hint="Count from 1.", status=422)
    pixels = np.stack([image.pixels for image in decoded])
    answers = engine(pixels)
    images = []
    for row, image in enumerate(decoded):
        score = None if answers.outlier_scores is None else float(answers.outlier_scores[row])
        said: dict[str, Any] = judge(engine, answers.probs[row], score, first_reading=first_reading)
        images.append(Judgement(frame=image.frame, **said))
    if not pictures:
        return Reading(images=images, pictures=None)
    chosen, best = decoded[frame - 1], int(answers.probs[frame - 1].argmax())
    heat = engine.explain(pixels[frame - 1 : frame], [best])[0]
    large = decode_frames(data, replace(engine.contract, image_size_px=max(_PICTURE_PX, engine.contract.image_size_px)), only=frame - 1)[0].pixels
    return Reading(
        images=images,
        pictures=Pictures(
            frame=frame,
            width_px=chosen.width_px,
            height_px=chosen.height_px,
            image=_data_url(large[0] if len(large) == 1 else large.transpose(1, 2, 0)),
            attention=_data_url(_overlay(heat, large.shape[1])),
            explains=engine.class_names[best],
            explained_by=engine.explained_by,
        ),
    )


def _overlay(heat: np.ndarray, side_px: int) -> np.ndarray:
    """(h, w) in 0..1 -> RGBA (side, side, 4): one colour, more opaque where there is more."""
    from PIL import Image

    alpha = Image.fromarray(np.round(heat * _MOST_OPAQUE).astype(np.uint8)).resize((side_px, side_px), Image.Resampling.BICUBIC)
    coloured = np.empty((side_px, side_px, 4), np.uint8)
    coloured[..., :3], coloured[..., 3] = _HEAT, np.asarray(alpha)
    return coloured


def _data_url(pixels: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")

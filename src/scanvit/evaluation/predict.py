"""A class and its probability for image files, through the same pixel path as training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError
from .inference import infer
from .predictions import outlier_scores, softmax

if TYPE_CHECKING:
    from ..core.contract import PixelContract
    from ..model.checkpoint import Classifier

log = logging.getLogger(__name__)

_AT_ONCE = 64
_MOST_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """Either ``probabilities`` ({class: 0..1}, calibrated) or ``error``."""

    image: str
    probabilities: dict[str, float] | None = None
    outlier_score: float | None = None
    """Above 1, the image is unlike all that the network knows. None where the checkpoint cannot tell."""
    error: ImageError | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.probabilities is None:
            return {"image": self.image, "error": str(self.error)}
        prediction = max(self.probabilities, key=self.probabilities.__getitem__)
        found = {"image": self.image, "prediction": prediction, "probability": self.probabilities[prediction], "probabilities": self.probabilities}
        return found if self.outlier_score is None else found | {"outlier_score": self.outlier_score, "outlier": self.outlier_score > 1}


def predict_files(run_or_file: Path | str, paths: Sequence[Path | str]) -> Iterator[FilePrediction]:
    """One result a path, in the order given, as they become ready; of a volume one a frame, named ``path#0001`` and so on, as in a manifest.
    A file that is no usable image gives a result with its error.

    Raises CheckpointError or RunMissingError where there is no model to load.
    """
    from ..model.checkpoint import load_model

    model = load_model(run_or_file)
    images = ((name, image) for path in paths for name, image in _decode(path, model.contract))
    while batch := list(islice(images, _AT_ONCE)):
        pixels = [image for _, image in batch if not isinstance(image, ImageError)]
        results = _judge(model, pixels) if pixels else iter(())
        for name, image in batch:
            if isinstance(image, ImageError):
                log.debug("%r: %s", name, image)
                yield FilePrediction(image=name, error=image)
            else:
                probs, score = next(results)
                shares = (round(float(p), 6) for p in probs)
                yield FilePrediction(image=name, probabilities=dict(zip(model.class_names, shares, strict=True)), outlier_score=score)


def _judge(model: Classifier, pixels: list[np.ndarray]) -> Iterator[tuple[np.ndarray, float | None]]:
    """Of each image its probabilities, (K,), and its outlier score."""
    logits, features = infer(model, np.stack(pixels))
    scores = outlier_scores(model, features)
    for i, probs in enumerate(softmax(logits, model.temperature)):
        yield probs, None if scores is None else round(float(scores[i]), 4)


def _decode(path: Path | str, contract: PixelContract) -> list[tuple[str, np.ndarray | ImageError]]:
    """(name, (C, H, W) uint8) an image of the file, or (path, what is wrong with the file)."""
    from ..data.decode import decode_frames

    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{str(path)!r} is a folder.", hint="Give image files.")
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ImageError(f"{str(path)!r} is larger than {_MOST_BYTES // 2**20} MiB.", hint="Give single images or volumes.")
        return [(str(path) if image.frame is None else f"{path}#{image.frame:04d}", image.pixels) for image in decode_frames(data, contract)]
    except OSError as cause:
        error = ImageError(f"{str(path)!r} cannot be read: {cause.strerror or cause}.", hint="Check the path and its permissions.")
    except ImageError as cause:
        error = cause if repr(str(path)) in cause.message else ImageError(f"{str(path)!r}: {cause.message}", hint=cause.hint)
    return [(str(path), error)]

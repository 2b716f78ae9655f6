"""A class and its probability for image files, through the same pixel path as training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError
from ..data.image_stream import Source, stream_images
from .engine import open_engine
from .judgement import judge

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """Either a judgement or ``error``."""

    image: str
    judgement: dict[str, Any] = field(default_factory=dict)
    """``judgement.judge``: prediction, probability, probabilities and more."""
    error: ImageError | None = None

    @property
    def probabilities(self) -> dict[str, float] | None:
        """{class: 0..1}, calibrated; None where there is an error."""
        return self.judgement.get("probabilities")

    @property
    def outlier_score(self) -> float | None:
        """Above 1, the image is unlike all that the network knows. None where the file of the network cannot tell."""
        return self.judgement.get("outlier_score")

    def to_dict(self) -> dict[str, Any]:
        return {"image": self.image} | (self.judgement if self.error is None else {"error": str(self.error)})


def predict_files(
    run_or_file: Path | str | Engine, paths: Iterable[Path | str | Source], *, workers: int = 0, at_once: int | None = None
) -> Iterator[FilePrediction]:
    """One result a path, in the order given, as they become ready; of a volume one a frame, named ``path#0001`` and so on, as in a manifest.
    A file that is no usable image gives a result with its error.

    ``paths``: read as they are needed; a ``Source`` with an ``extra`` brings a first reading. ``workers``: processes that decode while the network
    works; 0 decodes in this one. ``at_once``: images that the network takes at a time.

    Raises CheckpointError or RunMissingError where there is no model to load.
    """
    engine = open_engine(run_or_file) if isinstance(run_or_file, str | Path) else run_or_file
    sources = (path if isinstance(path, Source) else Source(str(path)) for path in paths)
    images = stream_images(sources, engine.contract, workers=workers)
    while batch := list(islice(images, at_once or _AT_ONCE)):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        answers = engine(np.stack(pixels)) if pixels else None
        row = 0
        for image in batch:
            if answers is None or image.pixels is None:
                log.debug("%r: %s", image.name, image.error)
                yield FilePrediction(image=image.name, error=image.error)
                continue
            score = None if answers.outlier_scores is None else float(answers.outlier_scores[row])
            yield FilePrediction(image=image.name, judgement=judge(engine, answers.probs[row], score, first_reading=image.source.extra))
            row += 1

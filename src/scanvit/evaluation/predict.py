"""A class and its probability for image files, through the same pixel path as training."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ImageError
from ..core.runtime import usable_cores
from ..data.image_stream import Block, Source, stream_blocks
from .engines import open_engine
from .judgement import judge

if TYPE_CHECKING:
    from .engine import Answers, Engine, Pixels

log = logging.getLogger(__name__)


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


def predict_files(run_or_file: Path | str | Engine, paths: Iterable[Path | str | Source], *, workers: int = 0) -> Iterator[FilePrediction]:
    """One result a path, in the order given, as they become ready; of a volume one a frame, named ``path#0001`` and so on, as in a manifest.
    A file that is no usable image gives a result with its error.

    ``paths``: read as they are needed; a ``Source`` with an ``extra`` brings a first reading. ``workers``: processes that decode while the network
    works; 0 decodes in this one.

    Raises CheckpointError or RunMissingError where there is no model to load.
    """
    engine = open_engine(run_or_file, callers=usable_cores()) if isinstance(run_or_file, str | Path) else run_or_file
    sources = (path if isinstance(path, Source) else Source(str(path)) for path in paths)
    with ThreadPoolExecutor(engine.callers, thread_name_prefix="network") as pool:
        for blocks, answers in _asked(engine, _together(stream_blocks(sources, engine.contract, workers=workers), engine.batch), pool):
            yield from _judged(engine, blocks, answers)


def _together(blocks: Iterator[Block], images: int) -> Iterator[list[Block]]:
    """As many at a time as hold that many images."""
    taken: list[Block] = []
    for block in blocks:
        taken.append(block)
        if sum(len(each.pixels) for each in taken) >= images:
            yield taken
            taken = []
    if taken:
        yield taken


def _asked(engine: Engine, given: Iterator[list[Block]], pool: ThreadPoolExecutor) -> Iterator[tuple[list[Block], Answers | None]]:
    """In order, while others are decoded and computed: for each thread one at work and one that waits."""
    pending: deque[tuple[list[Block], Future[Answers | None]]] = deque()
    try:
        while True:
            for blocks in islice(given, 2 * engine.callers - len(pending)):
                pending.append((blocks, pool.submit(_ask, engine, [block.pixels for block in blocks])))
            if not pending:
                return
            blocks, future = pending.popleft()
            yield blocks, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _ask(engine: Engine, parts: list[Pixels]) -> Answers | None:
    pixels = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return engine(pixels) if len(pixels) else None


def _judged(engine: Engine, blocks: list[Block], answers: Answers | None) -> Iterator[FilePrediction]:
    start = 0
    for block in blocks:
        for image in block.images():
            if image.row is None or answers is None:
                log.debug("%r: %s", image.name, image.error)
                yield FilePrediction(image=image.name, error=image.error)
                continue
            row = start + image.row
            score = None if answers.outlier_scores is None else float(answers.outlier_scores[row])
            yield FilePrediction(image=image.name, judgement=judge(engine, answers.probs[row], score, first_reading=image.source.extra))
        start += len(block.pixels)

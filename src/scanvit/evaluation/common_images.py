"""Runs on different packs, judged on the images that all of them were tested on: what a run on an extended pack is compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .predictions import Predictions
from .scores import Scores
from .scoring import compute_scores


@dataclass(frozen=True, kw_only=True)
class CommonImages:
    scores: list[Scores]
    """Of each run, on the common images alone."""
    left_out: list[int]
    """Images of each run's split that not all of the others have."""

    def sentence(self, labels: Sequence[str]) -> str:
        """ "Scored on the 120 test images that all runs share; left out: 14 of second." """
        first = self.scores[0]
        out = ", ".join(f"{count:,} of {label}" for label, count in zip(labels, self.left_out, strict=True) if count)
        return f"The packs differ. Scored on the {first.images:,} {first.split} images that all runs share; left out: {out or 'none'}."


def score_common_images(runs: Sequence[Path], scores: Sequence[Scores], split: str) -> CommonImages | None:
    """Score runs with the same classes anew on the images, by image_id and class, that the predictions of all of them hold.

    All runs get the same resamples of the same patients (the first run's identifiers). None where no image is common, or a run has no
    predictions any more. Raises RunError for predictions that cannot be read.
    """
    files = [run / f"predictions-{split}.parquet" for run in runs]
    if not all(file.is_file() for file in files):
        return None
    tables = [Predictions.load(file) for file in files]
    chosen = common_predictions(tables)
    if chosen is None:
        return None
    draws, seed = scores[0].interval["draws"], scores[0].interval["seed"]
    judged = []
    for table, before in zip(chosen, scores, strict=True):
        about = {"run": before.run, "experiment": before.experiment, "split": before.split, "audit": before.audit, "cost": before.cost}
        judged.append(compute_scores(replace(table, patient_ids=chosen[0].patient_ids), about=about, draws=draws, seed=seed))
    return CommonImages(scores=judged, left_out=[len(table) - len(chosen[0]) for table in tables])


def common_predictions(tables: Sequence[Predictions]) -> list[Predictions] | None:
    """Of each table the images that all hold, by image_id and class, in one order; None where there are none."""
    known = [dict(zip(table.image_ids, table.targets.tolist(), strict=True)) for table in tables]
    common = sorted(set.intersection(*(set(images.items()) for images in known)))
    return [_select(table, [image for image, _ in common]) for table in tables] if common else None


def _select(table: Predictions, image_ids: list[str]) -> Predictions:
    row_of = {image: row for row, image in enumerate(table.image_ids)}
    return table.take([row_of[image] for image in image_ids])

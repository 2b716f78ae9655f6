"""Runs judged on the images that all of them were tested on: what a run on an extended pack, or another model's table, is compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .predictions import Predictions
from .scores import Scores
from .scoring import compute_scores


@dataclass(frozen=True, kw_only=True)
class CommonImages:
    tables: list[Predictions]
    """Of each run, the common images alone, in one order, with the patients of the first run."""
    left_out: list[int]
    """Images of each run's split that not all of the others have."""

    def sentence(self, labels: Sequence[str], split: str) -> str:
        """ "Scored on the 120 test images that all runs share; left out: 14 of second." """
        out = ", ".join(f"{count:,} of {label}" for label, count in zip(labels, self.left_out, strict=True) if count)
        return f"The packs differ. Scored on the {len(self.tables[0]):,} {split} images that all runs share; left out: {out or 'none'}."


def load_tables(runs: Sequence[Path], split: str) -> list[Predictions] | None:
    """None where a run has no predictions any more. Raises RunError for predictions that cannot be read."""
    files = [run / f"predictions-{split}.parquet" for run in runs]
    return [Predictions.load(file) for file in files] if all(file.is_file() for file in files) else None


def find_common_images(tables: Sequence[Predictions]) -> CommonImages | None:
    """The images, by image_id and class, that all tables hold; None where there are none."""
    chosen = common_predictions(tables)
    if chosen is None:
        return None
    same = [replace(table, patient_ids=chosen[0].patient_ids) for table in chosen]
    return CommonImages(tables=same, left_out=[len(table) - len(chosen[0]) for table in tables])


def score_common_images(common: CommonImages, scores: Sequence[Scores]) -> list[Scores]:
    """Every run scored anew on the common images, with the same resamples of the same patients."""
    draws, seed = scores[0].interval["draws"], scores[0].interval["seed"]
    judged = []
    for table, before in zip(common.tables, scores, strict=True):
        about = {"run": before.run, "experiment": before.experiment, "split": before.split, "audit": before.audit, "cost": before.cost}
        judged.append(compute_scores(table, about=about | {"notes": before.notes}, draws=draws, seed=seed))
    return judged


def common_predictions(tables: Sequence[Predictions]) -> list[Predictions] | None:
    """Of each table the images that all hold, by image_id and class, in one order; None where there are none."""
    known = [dict(zip(table.image_ids, table.targets.tolist(), strict=True)) for table in tables]
    common = sorted(set.intersection(*(set(images.items()) for images in known)))
    return [_select(table, [image for image, _ in common]) for table in tables] if common else None


def _select(table: Predictions, image_ids: list[str]) -> Predictions:
    row_of = {image: row for row, image in enumerate(table.image_ids)}
    return table.take([row_of[image] for image in image_ids])

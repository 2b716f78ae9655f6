"""Which images stay in a pack, and in which split each of them stands: decided from the table of all that could be read, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import EmptyClassError
from .duplicates import find_duplicates, share_a_prefix
from .image_table import ImageTable
from .keep import look_up
from .near_copies import Settled, settle_near_duplicates
from .pack import Pack
from .selection import Quarantined
from .sources import Sources
from .splits import assign_splits


@dataclass(frozen=True, kw_only=True)
class Placement:
    splits: np.ndarray
    """Of each image that stays in the table: codes, int8 (N,)."""
    quarantined: list[Quarantined]
    """What leaves it."""
    warnings: Sequence[str]
    """What there is to say about the earlier pack."""


def place(
    images: ImageTable, spec: Sources, *, class_names: Sequence[str], source_names: Sequence[str], earlier: Pack | None, contract: PixelContract
) -> Placement:
    """Take duplicates out of ``images``, and deal its patients out to the splits; those of ``earlier`` stay where they are.

    Raises EmptyClassError where a class has no image left, and SourcesError where somebody would leave the split of ``earlier``.
    """
    # Looked up before duplicates go: a copy that goes still tells where its patient belongs.
    kept = look_up(earlier, images, contract) if earlier else None
    left, rejected = _drop_duplicates(images, class_names, source_names, originals=kept.originals if kept else None)
    if len(left) < len(images):
        images.take(left)
        kept = kept.take(left) if kept else None
    settled = settle_near_duplicates(images, spec.near_duplicates, placed=kept.assigned if kept else None, source_names=source_names)
    if settled.left is not None:
        images.take(settled.left)
        kept = kept.take(settled.left) if kept else None
    _check_classes(class_names, images)
    splits = _assign(images, spec, settled)
    if kept:
        kept.check(images, splits, source_names)
    return Placement(splits=splits, quarantined=rejected + settled.quarantined, warnings=kept.warnings if kept else ())


def _drop_duplicates(
    images: ImageTable, class_names: Sequence[str], source_names: Sequence[str], *, originals: np.ndarray | None
) -> tuple[np.ndarray, list[Quarantined]]:
    """The rows that stay, and the others. ``originals``: which of equal images is rather kept, bool (N,)."""
    pixels, sources, paths, labels = images.digests("pixels_sha256"), images.numpy("source"), images.strings("path"), images.numpy("class")
    suspects = share_a_prefix(pixels)
    if originals is not None:
        suspects = suspects[np.argsort(~originals[suspects], kind="stable")]
    rows = suspects.tolist()
    rejected = find_duplicates([(pixels[row].tobytes().hex(), class_names[labels[row]]) for row in rows])
    stays = np.ones(len(images), bool)
    quarantined = []
    for index, (reason, kept) in sorted(rejected.items(), key=lambda item: rows[item[0]]):
        row, other_row = rows[index], rows[kept]
        stays[row] = False
        other = f"{source_names[sources[other_row]]}: {paths[other_row]}"
        detail = f"the same as {other}" if reason == "duplicate" else f"{class_names[labels[row]]} here, {class_names[labels[other_row]]} in {other}"
        quarantined.append(Quarantined(source_names[sources[row]], str(paths[row]), reason, detail))
    return np.flatnonzero(stays), quarantined


def _check_classes(class_names: Sequence[str], images: ImageTable) -> None:
    counts = np.bincount(images.numpy("class"), minlength=len(class_names)).tolist()
    if 0 in counts:
        name = class_names[counts.index(0)]
        raise EmptyClassError(f"The class {name!r} has no image left: all are in the quarantine.", hint="Mend its files, or remove the class.")


def _assign(images: ImageTable, spec: Sources, settled: Settled) -> np.ndarray:
    splits = images.numpy("kept_split").copy()
    if (splits < 0).all():
        return assign_splits(settled.patients, images.numpy("class"), shares=spec.split, seed=spec.split.seed, kept=settled.placed)
    rows = np.flatnonzero(splits < 0)
    patients, labels = settled.patients.take(rows), images.numpy("class")[rows]
    placed = None if settled.placed is None else settled.placed[rows]
    splits[rows] = assign_splits(patients, labels, shares=spec.split, seed=spec.split.seed, kept=placed)
    return splits

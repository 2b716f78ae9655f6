"""Which of the decoded images do not go into the pack, because they are there already or nearly so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .duplicates import find_duplicates, later_copies, merge_patients, near_duplicate_groups
from .image_table import ImageTable
from .selection import Quarantined
from .sources import SPLITS, Sources


def exact_duplicates(
    images: ImageTable, class_names: Sequence[str], source_names: Sequence[str], *, originals: np.ndarray | None
) -> tuple[np.ndarray, list[Quarantined]]:
    """The rows that stay, and the others. ``originals``: which of equal images is rather kept, bool (N,)."""
    pixels, sources, paths, labels = images["pixels_sha256"], images.numpy("source"), images["path"], images.numpy("class")
    # Whoever shares not even eight bytes of the digest with another has no equal: few are left to look at.
    _, group, count = np.unique(images.digests("pixels_sha256")[:, :8].copy().view(np.uint64), return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(count[group.reshape(-1)] > 1)
    if originals is not None:
        suspects = suspects[np.argsort(~originals[suspects], kind="stable")]
    rows = suspects.tolist()
    rejected = find_duplicates([(pixels[row].as_py().hex(), class_names[labels[row]]) for row in rows])
    stays = np.ones(len(images), bool)
    quarantined = []
    for index, (reason, kept) in sorted(rejected.items(), key=lambda item: rows[item[0]]):
        row, other_row = rows[index], rows[kept]
        stays[row] = False
        other = f"{source_names[sources[other_row]]}: {paths[other_row]}"
        detail = f"the same as {other}" if reason == "duplicate" else f"{class_names[labels[row]]} here, {class_names[labels[other_row]]} in {other}"
        quarantined.append(Quarantined(source_names[sources[row]], str(paths[row]), reason, detail))
    return np.flatnonzero(stays), quarantined


def near_duplicates(images: ImageTable, spec: Sources, source_names: Sequence[str]) -> tuple[np.ndarray, pa.Array, list[Quarantined]]:
    """The rows that stay, whom each of them counts for when splitting, and the copies that are dropped."""
    everyone = np.arange(len(images))
    if spec.near_duplicates == "keep":
        return everyone, images["patient_id"], []
    patients = images["patient_id"].to_pylist()
    groups = near_duplicate_groups([digest.hex() for digest in images["perceptual_hash"].to_pylist()], patients)
    if spec.near_duplicates == "move":
        return everyone, pa.array(merge_patients(groups, patients)), []
    sources, paths = images.numpy("source"), images["path"]
    rejected = later_copies(groups, patients, [SPLITS[code] if code >= 0 else None for code in images.numpy("kept_split").tolist()])
    where = [(source_names[sources[row]], str(paths[row])) for row in range(len(images))]
    quarantined = [Quarantined(*where[row], "near-duplicate", f"nearly the same as {': '.join(where[head])}") for row, head in sorted(rejected.items())]
    stays = np.setdiff1d(everyone, np.fromiter(rejected, np.int64, len(rejected)))
    return stays, images["patient_id"].take(pa.array(stays)), quarantined

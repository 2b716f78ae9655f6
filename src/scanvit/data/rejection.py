"""Which of the decoded images do not go into the pack, because they are there already (near duplicates: data.near_copies)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .duplicates import find_duplicates
from .image_table import ImageTable
from .selection import Quarantined


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

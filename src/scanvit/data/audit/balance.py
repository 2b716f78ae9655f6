"""G6: classes that are too small to judge, and splits that are not alike."""

from __future__ import annotations

import numpy as np

from .gate import Example, Gate
from .view import AuditView

TINY_CLASS_IMAGES = 5
"""Below this many images of a class in a split no figure for the class means anything."""
SHARES_APART = 0.1
"""Total variation distance between the class shares of two splits from which they differ: a tenth of the images would have to change class."""
BRIGHTNESS_APART = 0.2
"""Kolmogorov's distance between the brightness of two splits from which they differ."""
_LEVEL = 0.001
"""Of the tests that keep a small split's luck from counting. Patients count, not images: those of one patient are alike."""
_JUDGED = ("train", "val", "test")
"""final_eval is a pool, of which slices may have been moved away on purpose."""


def gate_balance(view: AuditView) -> Gate:
    """G6: empty or tiny classes in train, val or test; class shares or brightness that differ between them."""
    pack = view.pack
    sizes = {(name, split): pack.counts[split][name] for split in _JUDGED for name in pack.class_names}
    smallest = min(sizes.values())
    small = [f"{name} in {split}: {number}" for (name, split), number in sizes.items() if number < TINY_CLASS_IMAGES]
    told = [f"Fewer than {TINY_CLASS_IMAGES} images: {', '.join(small)}." if small else f"The smallest class has {smallest:,} images in a split."]
    shares, differing = _class_shares(view)
    brightness, brighter, examples = _brightness(view)
    told += [f"Class shares differ between {differing} by {shares:.2f} (fails from {SHARES_APART})."] if differing else []
    told += [f"Brightness differs between {brighter} by {brightness:.2f} (Kolmogorov's distance; fails from {BRIGHTNESS_APART})."] if brighter else []
    if not differing and not brighter:
        told.append(f"Class shares differ by {shares:.2f} at the most, brightness by {brightness:.2f}: no more than chance gives, or too little to matter.")
    return Gate(
        gate="G6",
        title="Every class is in every split, and the splits are alike",
        verdict="fail" if small or differing or brighter else "pass",
        figure=float(smallest),
        figure_name="images of the smallest class in a split (fails below)",
        threshold=float(TINY_CLASS_IMAGES),
        detail=" ".join(told),
        measured={"class_shares_apart": round(shares, 3), "brightness_apart": round(brightness, 3)},
        examples=examples if brighter else (),
    )


def _class_shares(view: AuditView) -> tuple[float, str]:
    """The largest total variation distance between two splits, and their names where it is too large and no luck."""
    from scipy.stats import chi2_contingency

    worst, differing = 0.0, ""
    for one, other in _pairs_of_splits(view):
        rows = [np.flatnonzero(view.split == code) for code in (one, other)]
        counts = np.stack([np.bincount(view.class_of[r], minlength=len(view.class_names)) for r in rows]).astype(np.float64)
        apart = float(np.abs(np.diff(counts / counts.sum(axis=1, keepdims=True), axis=0)).sum() / 2)
        worst = max(worst, apart)
        # Scaled to the number of patients: a patient with ten images is one draw, not ten.
        patients = [len(np.unique(view.patient[r])) for r in rows]
        scaled = counts[:, counts.sum(axis=0) > 0] * (np.array(patients) / counts.sum(axis=1))[:, None]
        if apart >= max(worst, SHARES_APART) and scaled.shape[1] > 1 and chi2_contingency(scaled, correction=False).pvalue < _LEVEL:
            differing = f"{view.split_names[one]} and {view.split_names[other]}"
    return worst, differing


def _brightness(view: AuditView) -> tuple[float, str, tuple[Example, ...]]:
    """The largest Kolmogorov distance between the mean brightness of two splits' images, and their names where it is too large and no luck."""
    positions = view.sample(view.split)
    mean = view.thumbnails(positions).mean(axis=(1, 2))
    worst, differing = 0.0, ""
    examples: tuple[Example, ...] = ()
    for one, other in _pairs_of_splits(view):
        rows = [np.flatnonzero(view.split[positions] == code) for code in (one, other)]
        values = [np.sort(mean[r]) for r in rows]
        grid = np.concatenate(values)
        shares = [np.searchsorted(v, grid, side="right") / len(v) for v in values]
        apart = float(np.abs(shares[0] - shares[1]).max())
        patients = [len(np.unique(view.patient[positions[r]])) for r in rows]
        # Smirnov 1948: the distance that two samples of one kind exceed with the probability _LEVEL.
        luck = np.sqrt(-np.log(_LEVEL / 2) / 2 * sum(patients) / np.prod(patients))
        if apart >= max(worst, BRIGHTNESS_APART, luck):
            differing = f"{view.split_names[one]} and {view.split_names[other]}"
            examples = tuple(_typical(view, positions[r], mean[r]) for r in rows)
        worst = max(worst, apart)
    return worst, differing, examples


def _typical(view: AuditView, positions: np.ndarray, brightness: np.ndarray) -> Example:
    order = np.argsort(brightness, kind="stable")
    chosen = positions[order[np.linspace(0, len(order) - 1, 7).astype(np.int64)[[1, 3, 5]]]]
    name = view.split_names[view.split[chosen[0]]]
    return Example(f"{name}: mean brightness {255 * brightness.mean():.0f} of 255", tuple(view.picture(int(row)) for row in chosen))


def _pairs_of_splits(view: AuditView) -> list[tuple[int, int]]:
    codes = [view.split_names.index(split) for split in _JUDGED if split in view.split_names]
    return [(one, other) for number, one in enumerate(codes) for other in codes[number + 1 :]]

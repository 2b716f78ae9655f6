"""G6: classes that are too small to judge, and splits that are not alike."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ..sources import SPLITS
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
    small = {(name, split): number for (name, split), number in sizes.items() if number < TINY_CLASS_IMAGES}
    shown = ", ".join(f"{name} in {split}: {number}" for (name, split), number in small.items())
    told = [f"Fewer than {TINY_CLASS_IMAGES} images: {shown}." if small else f"The smallest class has {smallest:,} images in a split."]
    shares, differing = _class_shares(view)
    brightness, brighter, examples = _brightness(view)
    told += [f"Class shares differ between {differing} by {shares:.2f} (fails from {SHARES_APART})."] if differing else []
    told += [f"Brightness differs between {brighter} by {brightness:.2f} (Kolmogorov's distance; fails from {BRIGHTNESS_APART})."] if brighter else []
    if not differing and not brighter:
        told.append(f"Class shares differ by {shares:.2f} at the most, brightness by {brightness:.2f}: no more than chance gives, or too little to matter.")
    causes = {f"too few of {name} in {split}": float(TINY_CLASS_IMAGES - number) for (name, split), number in small.items()}
    causes |= {f"class shares of {differing}": shares} if differing else {}
    causes |= {f"brightness of {brighter}": brightness} if brighter else {}
    return Gate(
        gate="G6",
        title="Small classes and unlike splits",
        verdict="fail" if causes else "pass",
        figure=float(smallest),
        figure_name="images of the smallest class in a split (fails below)",
        threshold=float(TINY_CLASS_IMAGES),
        detail=" ".join(told),
        measured={"class_shares_apart": round(shares, 3), "brightness_apart": round(brightness, 3)},
        examples=examples if brighter else (),
        causes=causes,
    )


def _class_shares(view: AuditView) -> tuple[float, str]:
    """The largest total variation distance between two splits, and their names where it is too large and no luck."""
    from scipy.stats import chi2_contingency

    worst, differing = 0.0, ""
    by_split = {split: np.array([view.pack.counts[split][name] for name in view.class_names], np.float64) for split in _JUDGED}
    for one, other in _pairs_of_splits(view):
        counts = np.stack([by_split[one], by_split[other]])
        apart = float(np.abs(np.diff(counts / counts.sum(axis=1, keepdims=True), axis=0)).sum() / 2)
        worst = max(worst, apart)
        # Scaled to the number of patients: a patient with ten images is one draw, not ten.
        patients = [view.pack.patients[split] for split in (one, other)]
        scaled = counts[:, counts.sum(axis=0) > 0] * (np.array(patients) / counts.sum(axis=1))[:, None]
        if apart >= max(worst, SHARES_APART) and scaled.shape[1] > 1 and chi2_contingency(scaled, correction=False).pvalue < _LEVEL:
            differing = f"{one} and {other}"
    return worst, differing


def _brightness(view: AuditView) -> tuple[float, str, tuple[Example, ...]]:
    """The largest Kolmogorov distance between the mean brightness of two splits' images, and their names where it is too large and no luck."""
    positions = view.sample(view.split)
    mean = view.thumbnails(positions).mean(axis=(1, 2))
    worst, differing = 0.0, ""
    examples: tuple[Example, ...] = ()
    for one, other in _pairs_of_splits(view):
        rows = [np.flatnonzero(view.split[positions] == SPLITS.index(split)) for split in (one, other)]
        values = [np.sort(mean[r]) for r in rows]
        grid = np.concatenate(values)
        shares = [np.searchsorted(v, grid, side="right") / len(v) for v in values]
        apart = float(np.abs(shares[0] - shares[1]).max())
        patients = [len(np.unique(view.patient[positions[r]])) for r in rows]
        # Smirnov 1948: the distance that two samples of one kind exceed with the probability _LEVEL.
        luck = np.sqrt(-np.log(_LEVEL / 2) / 2 * sum(patients) / np.prod(patients))
        if apart >= max(worst, BRIGHTNESS_APART, luck):
            differing = f"{one} and {other}"
            examples = tuple(_typical(view, positions[r], mean[r]) for r in rows)
        worst = max(worst, apart)
    return worst, differing, examples


def _typical(view: AuditView, positions: np.ndarray, brightness: np.ndarray) -> Example:
    order = np.argsort(brightness, kind="stable")
    chosen = positions[order[np.linspace(0, len(order) - 1, 7).astype(np.int64)[[1, 3, 5]]]]
    name = SPLITS[view.split[chosen[0]]]
    return Example(f"{name}: mean brightness {255 * brightness.mean():.0f} of 255", tuple(view.picture(int(row)) for row in chosen))


def _pairs_of_splits(view: AuditView) -> list[tuple[str, str]]:
    return list(combinations([split for split in _JUDGED if view.pack.size(split)], 2))

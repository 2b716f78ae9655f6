"""How far two columns go together."""

from __future__ import annotations

import numpy as np

from ...storage.scratch import pieces_of


def cramers_v(counts: np.ndarray) -> float:
    """Association of the rows and columns of a table of counts, 0..1; 0 where one of them does not vary (Cramer 1946, section 21.9)."""
    counts = _filled(counts)
    smaller = min(counts.shape) - 1
    if smaller < 1:
        return 0.0
    return float(min(np.sqrt(_phi_squared(counts) / smaller), 1.0))


def corrected_cramers_v(counts: np.ndarray) -> float:
    """Cramer's V less what chance gives on average: few rows in many cells look associated when they are not (Bergsma 2013, section 3)."""
    counts = _filled(counts)
    (rows, columns), total = counts.shape, counts.sum()
    if min(rows, columns) < 2 or total < 2:
        return 0.0
    phi_squared = max(0.0, _phi_squared(counts) - (rows - 1) * (columns - 1) / (total - 1))
    smaller = min(rows - (rows - 1) ** 2 / (total - 1), columns - (columns - 1) ** 2 / (total - 1)) - 1
    return float(min(np.sqrt(phi_squared / smaller), 1.0)) if smaller > 0 else 0.0


def table_of(rows: np.ndarray, columns: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """int64 counts of each combination of two columns of codes."""
    counts = np.zeros(shape[0] * shape[1], np.int64)
    for piece in pieces_of(len(rows)):
        counts += np.bincount(rows[piece].astype(np.int64) * shape[1] + columns[piece], minlength=len(counts))
    return counts.reshape(shape)


def _filled(counts: np.ndarray) -> np.ndarray:
    return counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)


def _phi_squared(counts: np.ndarray) -> float:
    """Chi-squared over the number of rows."""
    total = counts.sum()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    return float(((counts - expected) ** 2 / expected).sum() / total)

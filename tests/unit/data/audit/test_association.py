from __future__ import annotations

import numpy as np
import pytest
from scipy.stats.contingency import association

from scanvit.data.audit.association import corrected_cramers_v, cramers_v, table_of


def test_cramers_v_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (3, 5), (8, 3)):
        counts = rng.integers(1, 50, shape)
        assert cramers_v(counts) == pytest.approx(association(counts, method="cramer", correction=False))
    assert cramers_v(np.eye(4, dtype=np.int64) * 9) == pytest.approx(1)


@pytest.mark.parametrize("measure", [cramers_v, corrected_cramers_v])
def test_what_does_not_vary_is_not_associated(measure: object) -> None:
    assert callable(measure)
    for counts in ([[3, 0], [5, 0]], [[3, 5]], [[0, 0], [0, 0]], [[7, 0], [0, 0]]):
        assert measure(np.array(counts)) == 0


def test_the_correction_takes_chance_away() -> None:
    rng = np.random.default_rng(0)
    tables = [table_of(rng.integers(0, 8, 60), rng.integers(0, 8, 60), shape=(8, 8)) for _ in range(50)]
    assert np.mean([cramers_v(counts) for counts in tables]) > 0.3
    assert np.mean([corrected_cramers_v(counts) for counts in tables]) < 0.15
    assert corrected_cramers_v(np.eye(4, dtype=np.int64) * 90) == pytest.approx(1, abs=0.01)


def test_a_table_counts_each_combination() -> None:
    counts = table_of(np.array([0, 1, 1]), np.array([2, 0, 0]), shape=(2, 3))
    assert counts.tolist() == [[0, 0, 1], [2, 0, 0]]

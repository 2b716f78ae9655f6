from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.data.sources import SPLITS, SplitConfig
from scanvit.data.splits import assign_splits

SHARES = SplitConfig()
ROWS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=120)


def assign(rows: list[tuple[int, int]], seed: int = 0, shares: SplitConfig = SHARES) -> list[str]:
    codes = assign_splits([f"s:{patient}" for patient, _ in rows], [label for _, label in rows], shares=shares, seed=seed)
    return [SPLITS[code] for code in codes.tolist()]


@settings(deadline=None)
@given(ROWS, st.integers(0, 5))
def test_no_patient_stands_in_two_splits(rows: list[tuple[int, int]], seed: int) -> None:
    splits = defaultdict(set)
    result = assign(rows, seed)
    assert len(result) == len(rows)
    for (patient, _), split in zip(rows, result, strict=True):
        splits[patient].add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert set(result) <= {"train", "val", "test", "final_eval"}


@settings(deadline=None)
@given(ROWS, st.integers(0, 5), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[int, int]], seed: int, rng: random.Random) -> None:
    order = list(range(len(rows)))
    rng.shuffle(order)
    before = assign(rows, seed)
    after = assign([rows[i] for i in order], seed)
    assert after == [before[i] for i in order]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), min_size=4, max_size=25), min_size=1, max_size=5), st.integers(0, 3))
def test_every_class_of_four_patients_stands_in_train_val_and_test(sizes: list[list[int]], seed: int) -> None:
    rows = [(1000 * label + patient, label) for label, patients in enumerate(sizes) for patient, size in enumerate(patients) for _ in range(size)]
    found = defaultdict(set)
    for (_, label), split in zip(rows, assign(rows, seed), strict=True):
        found[label].add(split)
    assert all(splits >= {"train", "val", "test"} for splits in found.values())


@pytest.mark.parametrize("seed", range(3))
def test_ratios_are_met_within_a_point_for_each_class(seed: int) -> None:
    rng = random.Random(seed)
    # OCT2017-like: some patients with very many scans, some in two classes.
    rows = []
    for patient in range(3000):
        labels = rng.sample(range(4), 2 if rng.random() < 0.1 else 1)
        rows += [(patient, label) for label in labels for _ in range(int(rng.paretovariate(1.2)) % 100 + 1)]
    result = assign(rows, seed)
    for label in range(4):
        counts = Counter(split for (_, found), split in zip(rows, result, strict=True) if found == label)
        total = sum(counts.values())
        for split, share in {"train": 0.63, "val": 0.18, "test": 0.09, "final_eval": 0.1}.items():
            assert abs(counts[split] / total - share) < 0.01, (label, split, counts)


def test_splits_hold_patients_of_every_size() -> None:
    rows = [(patient, 0) for patient in range(400) for _ in range(1 + 30 * (patient % 10 == 0))]
    large = {f"{patient}" for patient in range(0, 400, 10)}
    counts = Counter(split for patient, split in {(str(p), s) for (p, _), s in zip(rows, assign(rows), strict=True)} if patient in large)
    assert 20 <= counts["train"] <= 30
    assert all(counts[split] >= 1 for split in ("val", "test", "final_eval"))


def test_the_seed_changes_who_goes_where() -> None:
    rows = [(patient, patient % 3) for patient in range(200)]
    assert assign(rows, 1) != assign(rows, 2)
    assert assign(rows, 1) == assign(rows, 1)


def test_the_pool_takes_its_share_of_the_patients_and_may_be_none() -> None:
    rows = [(patient, patient % 2) for patient in range(400)]
    assert Counter(assign(rows))["final_eval"] == 40
    assert Counter(assign(rows, shares=SplitConfig(final_eval=0)))["final_eval"] == 0


def test_a_share_of_zero_gets_nothing() -> None:
    rows = [(patient, 0) for patient in range(50)]
    assert Counter(assign(rows, shares=SplitConfig(train=1, val=0, test=0, final_eval=0))) == {"train": 50}


def test_one_patient_and_no_patient() -> None:
    assert assign([(1, 0), (1, 1)]) == ["train", "train"]
    assert assign([]) == []


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 5))
def test_repeated_additions_move_nobody(additions: list[list[tuple[int, int]]], seed: int) -> None:
    rows: list[tuple[int, int]] = []
    stands: dict[int, int] = {}
    for more in additions:
        rows = rows + more
        kept = np.array([stands.get(patient, -1) for patient, _ in rows], np.int8)
        codes = assign_splits([f"s:{patient}" for patient, _ in rows], [label for _, label in rows], shares=SHARES, seed=seed, kept=kept).tolist()
        now = {patient: code for (patient, _), code in zip(rows, codes, strict=True)}
        assert all(now[patient] == code for (patient, _), code in zip(rows, codes, strict=True))
        assert now.items() >= stands.items()
        stands = now


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("known", [0.1, 0.5, 0.9])
def test_totals_with_those_who_stay_are_within_a_point(seed: int, known: float) -> None:
    rng = random.Random(seed)
    rows = [(patient, patient % 3) for patient in range(2000) for _ in range(rng.randint(1, 12))]
    old = [row for row in rows if row[0] < 2000 * known]
    stands = dict(zip([patient for patient, _ in old], assign(old, seed), strict=True))
    kept = np.array([SPLITS.index(stands[patient]) if patient in stands else -1 for patient, _ in rows], np.int8)
    codes = assign_splits([f"s:{patient}" for patient, _ in rows], [label for _, label in rows], shares=SHARES, seed=seed, kept=kept)
    for label in range(3):
        counts = np.bincount([code for (_, found), code in zip(rows, codes, strict=True) if found == label], minlength=4)
        assert np.abs(counts / counts.sum() - [0.63, 0.18, 0.09, 0.1]).max() < 0.01

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scanvit.data.near_copies import later_copies, merge_patients, shared_groups

NAMES = ["d", "b", "c", "a", "e"]
NONE = -1


def merged(groups: list[list[int]], patients: list[int], bound: dict[int, int] | None = None) -> tuple[list[str], list[int]]:
    """(whom each row counts for, the split that binds them)."""
    splits = np.array([(bound or {}).get(row, NONE) for row in range(len(patients))], np.int8)
    codes, placed = merge_patients(groups, np.array(patients), NAMES, splits)
    return [NAMES[code] for code in codes], placed.tolist()


def test_groups_of_one_patient_are_left_alone() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, (4, 4), dtype=np.uint64)[[0, 0, 1, 1, 2, 3]]
    assert shared_groups(hashes, np.array([0, 0, 1, 2, 3, 4])) == [[2, 3]]


def test_the_first_patient_keeps_all_images_of_a_group() -> None:
    patients = np.array([0, 1, 0, 2])
    assert later_copies([[0, 1, 2, 3]], patients, np.zeros(4, bool)) == {1: 0, 3: 0}


def test_an_image_that_has_a_split_comes_first() -> None:
    patients = np.array([0, 1, 1, 2])
    assert later_copies([[0, 1, 3]], patients, np.array([False, True, False, False])) == {0: 1, 3: 1}


def test_patients_of_a_group_count_as_the_least_name_of_them() -> None:
    assert merged([[0, 1]], [0, 1, 2])[0] == ["b", "b", "c"]


def test_groups_that_share_a_patient_become_one() -> None:
    # d ~ b by one picture, b ~ a by another; row 4 is another image of d.
    assert merged([[0, 1], [2, 3]], [0, 1, 1, 3, 0, 4])[0] == ["a", "a", "a", "a", "a", "e"]


def test_who_has_no_split_follows_who_has_one() -> None:
    assert merged([[0, 1]], [0, 1, 2], {1: 2}) == (["b", "b", "c"], [2, 2, NONE])
    assert merged([[0, 1]], [0, 1, 2, 0], {3: 1}) == (["b", "b", "c", "b"], [1, 1, NONE, 1])


def test_who_stands_in_different_splits_stays_apart() -> None:
    assert merged([[0, 1]], [0, 1], {0: 0, 1: 2}) == (["d", "b"], [0, 2])
    names, splits = merged([[0, 1, 2]], [0, 1, 2], {0: 0, 2: 2})
    assert splits[0] == 0
    assert splits[2] == 2
    assert (names[1], splits[1]) in ((names[0], 0), (names[2], 2))


@given(
    st.lists(st.lists(st.integers(0, 19), min_size=2, max_size=4, unique=True), max_size=8),
    st.lists(st.integers(0, 4), min_size=20, max_size=20),
    st.dictionaries(st.integers(0, 19), st.integers(0, 3), max_size=4),
)
def test_nobody_counts_for_two_and_no_binding_split_is_lost(groups: list[list[int]], patients: list[int], bound: dict[int, int]) -> None:
    split_of = {patients[row]: split for row, split in sorted(bound.items())}  # one split a patient
    bound = {row: split_of[patients[row]] for row in range(20) if patients[row] in split_of}
    names, placed = merged(groups, patients, bound)
    assert len(set(zip(patients, names, strict=True))) == len(set(patients))
    assert len(set(zip(names, placed, strict=True))) == len(set(names))
    assert all(placed[row] == split for row, split in bound.items())
    for rows in groups:
        together = {names[row] for row in rows}
        assert len(together) == 1 or len({placed[row] for row in rows} - {NONE}) > 1

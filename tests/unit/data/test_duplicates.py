from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.data.duplicates import find_duplicates, share_a_prefix


def test_the_first_of_equal_images_is_kept() -> None:
    assert find_duplicates([("p", "a"), ("q", "a"), ("p", "a"), ("p", "a")]) == {2: ("duplicate", 0), 3: ("duplicate", 0)}


def test_equal_images_of_different_classes_all_go() -> None:
    found = find_duplicates([("p", "a"), ("p", "a"), ("p", "b"), ("q", "b")])
    assert found == {0: ("conflicting-labels", 2), 1: ("conflicting-labels", 2), 2: ("conflicting-labels", 0)}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from("abc")), max_size=30))
def test_what_is_left_has_no_equal_pixels_and_nothing_else_is_lost(images: list[tuple[str, str]]) -> None:
    found = find_duplicates(images)
    left = [pixels for index, (pixels, _) in enumerate(images) if index not in found]
    assert len(left) == len(set(left))
    for pixels, labels in {p: {label for q, label in images if q == p} for p, _ in images}.items():
        assert (pixels in left) == (len(labels) == 1)
    for index, (_, other) in found.items():
        assert other != index
        assert images[other][0] == images[index][0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=50))
def test_rows_that_share_their_first_eight_bytes(numbers: list[int]) -> None:
    digests = np.zeros((len(numbers), 32), np.uint8)
    digests[:, 7] = numbers
    digests[:, 8] = np.arange(len(numbers))
    assert share_a_prefix(digests).tolist() == [row for row, number in enumerate(numbers) if numbers.count(number) > 1]

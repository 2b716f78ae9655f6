"""Exact duplicates: images with the same pixels."""

from __future__ import annotations

from collections.abc import Sequence


def find_duplicates(images: Sequence[tuple[str, str]]) -> dict[int, tuple[str, int]]:
    """Which images to leave out: {index: (reason, index of the image it is compared with)}.

    ``images``: (SHA-256 of the decoded pixels, class) of each; equal files have equal pixels. Of equal images within one class the first is
    kept and the others are ``duplicate``. Equal images of different classes contradict each other: all of them are ``conflicting-labels``.
    """
    first: dict[str, int] = {}
    group: list[int] = []
    for index, (pixels, _) in enumerate(images):
        group.append(first.setdefault(pixels, index))
    conflict: dict[int, int] = {}
    for index, head in enumerate(group):
        if images[index][1] != images[head][1]:
            conflict.setdefault(head, index)
    rejected: dict[int, tuple[str, int]] = {}
    for index, head in enumerate(group):
        if head in conflict:
            other = head if images[index][1] != images[head][1] else conflict[head]
            rejected[index] = ("conflicting-labels", other)
        elif index != head:
            rejected[index] = ("duplicate", head)
    return rejected

from __future__ import annotations

from collections.abc import Mapping

import pytest

from scanvit.data.audit.gate import Gate, causes_of, new_causes


def failed(causes: Mapping[str, float]) -> Gate:
    return Gate(gate="G6", title="", verdict="fail", figure=0.0, figure_name="", threshold=1, detail="", causes=causes)


@pytest.mark.parametrize(
    ("accepted", "found", "new"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, []),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, ["b"]),
        ({"skill": 0.33}, {"skill": 0.36}, []),
        ({"skill": 0.33}, {"skill": 0.39}, ["skill"]),
        ({"too few of a in test": 1.0}, {"too few of a in test": 2.0}, ["too few of a in test"]),
        ({"too few of a in test": 4.0}, {"too few of a in test": 1.0}, []),
        ({}, {"a": 1.0}, ["a"]),
    ],
)
def test_what_is_new_or_worse(accepted: dict[str, float], found: dict[str, float], new: list[str]) -> None:
    assert new_causes(failed(found), accepted) == new


def test_very_many_causes_are_one_that_any_change_makes_new() -> None:
    many = [f"patient {number} in test and train" for number in range(5000)]
    assert len(causes_of(many)) == 1
    assert causes_of(many) == causes_of(many[::-1])
    assert new_causes(failed(causes_of(many[1:])), causes_of(many))

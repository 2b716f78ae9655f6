from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.training.mlflow_entities import metric_key


@pytest.mark.parametrize("name", ["val_loss", "val_recall/lung-viral pneumonia", "system/gpu_0_utilization_percentage", "val_recall/Übersicht"])
def test_names_that_mlflow_takes_stay(name: str) -> None:
    assert metric_key(name) == name


def test_two_classes_never_become_one_curve() -> None:
    names = ["val_recall/COVID+", "val_recall/COVID*", "val_recall/a//b", "val_recall/a/_/b", "val_recall/..", "val_recall/.", "x" * 300, "x" * 301]
    assert len({metric_key(name) for name in names}) == len(names)


@given(st.text(min_size=1, max_size=400))
def test_any_class_name_gives_a_key_within_the_limits(name: str) -> None:
    key = metric_key(f"val_recall/{name}")
    assert len(key) <= 250
    assert re.fullmatch(r"[/\w.\- :]*", key)
    assert all(part.strip(". ") for part in key.split("/")), "no empty or dotted parts"

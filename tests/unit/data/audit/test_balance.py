from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scanvit.data.audit import Gate
from scanvit.data.audit.balance import gate_balance
from scanvit.data.audit.view import AuditView
from scanvit.data.pack import Pack

MakePack = Callable[..., Path]
Row = tuple[str, str, str, str]


def rows_of(sizes: dict[str, dict[str, int]], images: int = 1) -> list[Row]:
    """{split: {class: patients}}, ``images`` images each."""
    return [
        (split, name, "s", f"{split}{name}{i}")
        for split, classes in sizes.items()
        for name, count in classes.items()
        for i in range(count)
        for _ in range(images)
    ]


def judged(folder: Path) -> Gate:
    return gate_balance(AuditView(Pack.open(folder)))


ALIKE = {"train": {"a": 70, "b": 35}, "val": {"a": 20, "b": 10}, "test": {"a": 10, "b": 5}}


def test_splits_that_are_alike_pass(make_pack: MakePack) -> None:
    found = judged(make_pack(rows_of(ALIKE)))
    assert (found.verdict, found.figure, found.threshold) == ("pass", 5.0, 5.0)


def test_a_tiny_class_fails(make_pack: MakePack) -> None:
    found = judged(make_pack(rows_of(ALIKE | {"test": {"a": 10, "b": 4}})))
    assert (found.verdict, found.figure) == ("fail", 4.0)
    assert "b in test: 4" in found.detail


def test_an_empty_class_and_an_empty_split_fail(make_pack: MakePack) -> None:
    assert "b in test: 0" in judged(make_pack(rows_of(ALIKE | {"test": {"a": 10}}))).detail
    found = judged(make_pack(rows_of({"train": ALIKE["train"], "val": ALIKE["val"]}), name="other"))
    assert (found.verdict, found.figure) == ("fail", 0.0)


def test_a_test_split_with_other_class_shares_fails(make_pack: MakePack) -> None:
    found = judged(make_pack(rows_of(ALIKE | {"test": {"a": 20, "b": 60}})))
    assert found.verdict == "fail"
    assert "Class shares differ between" in found.detail
    assert found.measured["class_shares_apart"] == 0.417


def test_a_small_split_s_luck_passes(make_pack: MakePack) -> None:
    found = judged(make_pack(rows_of(ALIKE | {"test": {"a": 8, "b": 7}})))
    assert found.measured["class_shares_apart"] > 0.1
    assert found.verdict == "pass"


def test_many_images_of_few_patients_are_luck_too(make_pack: MakePack) -> None:
    found = judged(make_pack(rows_of({"train": {"a": 7, "b": 4}, "val": {"a": 7, "b": 4}, "test": {"a": 4, "b": 7}}, images=20)))
    assert found.measured["class_shares_apart"] > 0.1
    assert found.verdict == "pass"


def test_final_eval_may_differ(make_pack: MakePack) -> None:
    assert judged(make_pack(rows_of(ALIKE | {"final_eval": {"a": 1, "b": 60}}))).verdict == "pass"


def test_a_brighter_test_split_fails(make_pack: MakePack) -> None:
    rows = rows_of(ALIKE | {"test": {"a": 20, "b": 10}})
    random = np.random.default_rng(0)
    pixels = {number: random.integers(60 if row[0] == "test" else 0, 200, (1, 8, 8), np.uint8) for number, row in enumerate(rows)}
    found = judged(make_pack(rows, pixels))
    assert found.verdict == "fail"
    assert found.measured["brightness_apart"] > 0.9
    assert "Brightness differs between" in found.detail
    assert {picture.split for example in found.examples for picture in example.pictures} in ({"train", "test"}, {"val", "test"})

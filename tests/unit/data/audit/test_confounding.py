from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scanvit.data.audit import Gate
from scanvit.data.audit.confounding import gate_confounding, gate_files
from scanvit.data.audit.view import AuditView
from scanvit.data.pack import Pack

MakePack = Callable[..., Path]
Row = tuple[str, str, str, str]


def rows_of(sources: dict[str, str], patients: int = 20) -> list[Row]:
    """{class: its sources, a letter each}: that many patients with one image each, in train and in test."""
    return [
        (split, name, source, f"{split}{name}{i}")
        for split in ("train", "test")
        for name, given in sources.items()
        for source in given
        for i in range(patients)
    ]


def bars(rows: list[Row], place: dict[str, tuple[slice, slice]], *, by: int = 1) -> dict[int, np.ndarray]:
    """Noise, brighter where ``place`` says for the class (or, with by=2, for the source)."""
    random = np.random.default_rng(0)
    pictures = {number: random.integers(0, 128, (1, 8, 8), np.uint8) for number in range(len(rows))}
    for number, row in enumerate(rows):
        if row[by] in place:
            pictures[number][0][place[row[by]]] += 120
    return pictures


def judged(gate: Callable[[AuditView], Gate], folder: Path) -> Gate:
    return gate(AuditView(Pack.open(folder)))


CENTRE, CORNER = (slice(3, 5), slice(3, 5)), (slice(0, 1), slice(0, 2))
BOTH = {"a": "st", "b": "st"}


def test_a_finding_in_the_centre_passes(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    found = judged(gate_confounding, make_pack(rows, bars(rows, {"a": CENTRE})))
    assert (found.verdict, found.figure) == ("pass", 0.0)
    assert found.measured["image_probe"]["value"] > 0.9
    assert found.measured["border_probe"]["low"] <= 0.5 < found.measured["border_probe"]["high"] < 0.75
    assert found.examples == ()


def test_a_marker_at_the_border_fails(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    found = judged(gate_confounding, make_pack(rows, bars(rows, {"a": CORNER})))
    assert (found.verdict, found.figure) == ("fail", 0.0)
    assert "The border alone gives away: a, b." in found.detail
    assert [example.caption for example in found.examples] == ["a", "b"]


def test_a_marker_of_one_class_among_three_fails(make_pack: MakePack) -> None:
    rows = rows_of({"a": "s", "b": "s", "c": "s"}, patients=30)
    found = judged(gate_confounding, make_pack(rows, bars(rows, {"c": CORNER})))
    assert found.verdict == "fail"
    assert "The border alone gives away: c." in found.detail


def test_a_class_of_one_source_fails(make_pack: MakePack) -> None:
    rows = rows_of({"a": "s", "b": "t"})
    found = judged(gate_confounding, make_pack(rows))
    assert (found.verdict, found.figure) == ("fail", 1.0)
    assert "b (100% from t)" in found.detail
    assert found.measured["images"] == {"a": {"s": 40, "t": 0}, "b": {"s": 0, "t": 40}}
    assert [example.caption for example in found.examples] == ["s: a 40", "t: b 40"]


def test_sources_that_look_different_are_told_but_pass_where_every_class_has_both(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    found = judged(gate_confounding, make_pack(rows, bars(rows, {"t": CENTRE}, by=2)))
    assert found.verdict == "pass"
    assert found.measured["source_probe"]["value"] > 0.9


def test_sources_that_look_alike_are_at_chance(make_pack: MakePack) -> None:
    probe = judged(gate_confounding, make_pack(rows_of(BOTH))).measured["source_probe"]
    assert probe["low"] <= probe["chance"] == 0.5


def test_one_source_of_few_patients_cannot_be_judged(make_pack: MakePack) -> None:
    found = judged(gate_confounding, make_pack(rows_of({"a": "s", "b": "s"}, patients=2)))
    assert (found.verdict, found.figure) == ("not applicable", None)


def test_files_that_do_not_go_with_the_class_pass(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    random = np.random.default_rng(0)
    files = {number: (int(random.integers(200, 900)), 300, str(random.choice(["PNG", "JPEG"]))) for number in range(len(rows))}
    assert judged(gate_files, make_pack(rows, files=files)).verdict == "pass"
    assert judged(gate_files, make_pack(rows, name="alike")).figure == 0.0


def test_a_class_of_another_resolution_fails_g5_alone(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    random = np.random.default_rng(0)
    files = {number: (int(random.normal(640 if row[1] == "a" else 500, 20)), 480, "PNG") for number, row in enumerate(rows)}
    folder = make_pack(rows, files=files)
    found = judged(gate_files, folder)
    assert found.verdict == "fail"
    assert found.figure is not None
    assert found.figure > 0.9
    assert "The file alone gives away: a, b." in found.detail
    assert judged(gate_confounding, folder).verdict == "pass"


def test_a_class_of_another_format_fails(make_pack: MakePack) -> None:
    rows = rows_of({"a": "s", "b": "s", "c": "s", "d": "s"})
    files = {number: (64, 64, "JPEG" if row[1] == "d" else "PNG") for number, row in enumerate(rows)}
    found = judged(gate_files, make_pack(rows, files=files))
    assert found.verdict == "fail"
    assert found.measured["cramers_v_format"] > 0.99
    assert found.measured["files"]["d"] == {"commonest": "64 x 64 JPEG", "share": 1.0, "kinds": 1}


def test_another_aspect_alone_fails(make_pack: MakePack) -> None:
    rows = rows_of(BOTH)
    random = np.random.default_rng(0)
    widths = random.integers(300, 900, len(rows))
    files = {number: (int(width), int(width * (1.25 if rows[number][1] == "a" else 1.0)), "PNG") for number, width in enumerate(widths)}
    assert judged(gate_files, make_pack(rows, files=files)).verdict == "fail"


def test_files_of_few_patients_cannot_be_judged(make_pack: MakePack) -> None:
    found = judged(gate_files, make_pack(rows_of({"a": "s", "b": "s"}, patients=2)))
    assert (found.verdict, found.figure) == ("not applicable", None)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats.contingency import association

from scanvit.core.errors import ConfigError
from scanvit.data.audit import GATES, audit, cramers_v, run_gates
from scanvit.data.pack import Pack

MakePack = Callable[..., Path]
Rows = list[tuple[str, str, str, str]]


def balanced() -> Rows:
    splits = ("train", "val", "test")
    return [(split, name, source, f"{split}{name}{i}") for split in splits for name in ("a", "b") for source in ("s", "t") for i in range(5)]


def verdicts(folder: Path) -> dict[str, str]:
    return {gate.gate: gate.verdict for gate in run_gates(Pack.open(folder))}


def test_clean_data_pass_every_gate(make_pack: MakePack) -> None:
    assert verdicts(make_pack(balanced())) == {"G1": "pass", "G2": "pass", "G4": "pass", "G6": "pass"}


def test_a_patient_in_two_splits_fails_g1_alone(make_pack: MakePack) -> None:
    rows = balanced()
    rows[0] = ("train", "a", "s", "leak")
    rows[-1] = ("test", "b", "s", "leak")
    folder = make_pack([*rows, ("test", "b", "t", "more")])
    found = {gate.gate: gate for gate in run_gates(Pack.open(folder))}
    assert {name for name, gate in found.items() if gate.verdict == "fail"} == {"G1"}
    assert found["G1"].figure == 1
    assert "s:leak" in found["G1"].detail


def test_unknown_patients_fail_g1(make_pack: MakePack) -> None:
    settings = {"sources": [{"name": "s", "patient": None, "patients": None}, {"name": "t", "patient": "(?P<patient>.)", "patients": None}]}
    gate = run_gates(Pack.open(make_pack(balanced(), settings=settings)))[0]
    assert gate.verdict == "fail"
    assert "patients of s:" in gate.detail


def test_identical_pixels_in_two_splits_fail_g2_alone(make_pack: MakePack) -> None:
    same = np.full((1, 8, 8), 7, np.uint8)
    folder = make_pack(balanced(), {0: same, 59: same})
    found = {gate.gate: gate for gate in run_gates(Pack.open(folder))}
    assert {name for name, gate in found.items() if gate.verdict == "fail"} == {"G2"}
    assert "a/0.png = b/59.png" in found["G2"].detail


def test_identical_pixels_in_one_split_pass_g2(make_pack: MakePack) -> None:
    same = np.full((1, 8, 8), 7, np.uint8)
    assert verdicts(make_pack(balanced(), {0: same, 1: same}))["G2"] == "pass"


def test_a_class_of_one_source_fails_g4_alone(make_pack: MakePack) -> None:
    rows = [(split, name, "s" if name == "a" else "t", patient) for split, name, _, patient in balanced()]
    found = {gate.gate: gate for gate in run_gates(Pack.open(make_pack(rows)))}
    assert {name for name, gate in found.items() if gate.verdict == "fail"} == {"G4"}
    assert found["G4"].figure == 1
    assert "b (100% from t)" in found["G4"].detail


def test_a_tiny_or_empty_class_fails_g6_alone(make_pack: MakePack) -> None:
    rows = [row for row in balanced() if row[:2] != ("test", "b")] + [("test", "b", source, f"p{i}") for i in range(2) for source in ("s", "t")]
    found = {gate.gate: gate for gate in run_gates(Pack.open(make_pack(rows)))}
    assert {name for name, gate in found.items() if gate.verdict == "fail"} == {"G6"}
    assert "b in test: 4" in found["G6"].detail
    assert found["G6"].figure == 4


def test_cramers_v_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (3, 5), (8, 3)):
        counts = rng.integers(1, 50, shape)
        assert cramers_v(counts) == pytest.approx(association(counts, method="cramer", correction=False))
    assert cramers_v(np.eye(4, dtype=np.int64) * 9) == pytest.approx(1)
    assert cramers_v(np.array([[3, 0], [5, 0]])) == 0


def test_acknowledging_is_recorded_and_kept(make_pack: MakePack) -> None:
    rows = [(split, name, "s" if name == "a" else "t", patient) for split, name, _, patient in balanced()]
    folder = make_pack(rows)
    before = Pack.open(folder).fingerprint
    audit(folder)
    assert [gate["verdict"] for gate in Pack.open(folder).findings()] == ["fail"]
    audit(folder, acknowledge={"G4": "one hospital a class"})
    audit(folder)
    assert [(gate["gate"], gate["verdict"], gate["reason"]) for gate in Pack.open(folder).findings()] == [("G4", "acknowledged", "one hospital a class")]
    assert Pack.open(folder).fingerprint == before


def test_a_gate_that_passes_is_not_acknowledged(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    assert all(gate.reason is None for gate in audit(folder, acknowledge={"G1": "x"}))


def test_an_unknown_gate_is_named_and_nothing_is_written(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    with pytest.raises(ConfigError, match="'G9'"):
        audit(folder, acknowledge={"G9": "x"})
    assert not (folder / "audit.json").exists()


def test_a_damaged_audit_is_written_anew(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    (folder / "audit.json").write_text("{", encoding="utf-8")
    audit(folder)
    assert len(json.loads((folder / "audit.json").read_text(encoding="utf-8"))["gates"]) == len(GATES)

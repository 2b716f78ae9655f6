from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanvit.core.errors import ConfigError, PackCorruptError
from scanvit.data.audit import GATES, audit, run_gates
from scanvit.data.pack import MANIFEST, Pack

MakePack = Callable[..., Path]
Rows = list[tuple[str, str, str, str]]


def balanced() -> Rows:
    splits = ("train", "val", "test")
    return [(split, name, source, f"{split}{name}{i}") for split in splits for name in ("a", "b") for source in ("s", "t") for i in range(5)]


def confounded() -> Rows:
    return [(split, name, "s" if name == "a" else "t", patient) for split, name, _, patient in balanced()]


def test_clean_data_pass_every_gate(make_pack: MakePack) -> None:
    gates = run_gates(Pack.open(make_pack(balanced())))
    assert [gate.gate for gate in gates] == list(GATES)
    assert {gate.verdict for gate in gates} == {"pass"}


def test_the_same_pack_gives_the_same_audit(make_pack: MakePack) -> None:
    folder = make_pack(confounded())
    audit(folder)
    before = {name: (folder / name).read_bytes() for name in ("audit.json", "audit.html")}
    audit(folder)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_progress_counts_the_gates(make_pack: MakePack) -> None:
    steps: list[tuple[str, int, int]] = []
    audit(make_pack(balanced()), progress=lambda *step: steps.append(step))
    assert steps == [("Auditing", done, len(GATES)) for done in range(len(GATES) + 1)]


def test_audit_json_holds_figures_thresholds_and_examples(make_pack: MakePack) -> None:
    folder = make_pack(confounded())
    audit(folder)
    stored = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    pack = Pack.open(folder)
    assert (stored["format"], stored["fingerprint"]) == (1, pack.fingerprint)
    gate = next(gate for gate in stored["gates"] if gate["gate"] == "G4")
    assert (gate["verdict"], gate["figure"], gate["threshold"]) == ("fail", 1.0, 0.3)
    known = set(zip(*(pack.manifest[name].to_pylist() for name in ("split", "image_id", "row")), strict=True))
    pictures = [picture for example in gate["examples"] for picture in example["pictures"]]
    assert pictures
    assert {(picture["split"], picture["image_id"], picture["row"]) for picture in pictures} <= known


def test_acknowledging_is_recorded_and_kept(make_pack: MakePack) -> None:
    folder = make_pack(confounded())
    before = Pack.open(folder).fingerprint
    audit(folder)
    assert [gate["verdict"] for gate in Pack.open(folder).findings()] == ["fail"]
    audit(folder, acknowledge={"G4": "one hospital a class"})
    audit(folder)
    assert [(gate["gate"], gate["verdict"], gate["reason"]) for gate in Pack.open(folder).findings()] == [("G4", "acknowledged", "one hospital a class")]
    assert "one hospital a class" in (folder / "audit.html").read_text(encoding="utf-8")
    assert Pack.open(folder).fingerprint == before


def test_an_acknowledgement_of_other_images_does_not_count(make_pack: MakePack) -> None:
    folder, other = make_pack(confounded()), make_pack(confounded()[:-1], name="other")
    audit(folder, acknowledge={"G4": "one hospital a class"})
    (other / "audit.json").write_bytes((folder / "audit.json").read_bytes())
    assert {gate.gate: gate.verdict for gate in audit(other)}["G4"] == "fail"


def test_a_reason_given_before_causes_were_recorded_holds_for_the_same_finding(make_pack: MakePack) -> None:
    folder = make_pack(confounded())
    audit(folder, acknowledge={"G4": "one hospital a class"})
    stored = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    for gate in stored["gates"]:
        del gate["causes"], gate["accepted"]
    (folder / "audit.json").write_text(json.dumps(stored), encoding="utf-8")
    assert {gate.gate: gate.verdict for gate in audit(folder)}["G4"] == "acknowledged"
    next(gate for gate in stored["gates"] if gate["gate"] == "G4")["detail"] = "Something else."
    (folder / "audit.json").write_text(json.dumps(stored), encoding="utf-8")
    assert {gate.gate: gate.verdict for gate in audit(folder)}["G4"] == "fail"


def test_a_gate_that_passes_is_not_acknowledged(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    assert all(gate.reason is None for gate in audit(folder, acknowledge={"G1": "x"}))


def test_an_unknown_gate_is_named_and_nothing_is_written(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    with pytest.raises(ConfigError, match="'G9'"):
        audit(folder, acknowledge={"G9": "x"})
    assert not (folder / "audit.json").exists()
    assert not (folder / "audit.html").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"gates": 3}', '{"gates": [3]}'])
def test_a_damaged_audit_is_written_anew(make_pack: MakePack, text: str) -> None:
    folder = make_pack(balanced())
    (folder / "audit.json").write_text(text, encoding="utf-8")
    audit(folder)
    assert len(Pack.open(folder).audit()) == len(GATES)


def test_findings_are_lean_and_leave_out_what_does_not_apply(make_pack: MakePack) -> None:
    folder = make_pack(confounded())
    audit(folder)
    stored = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    stored["gates"][0]["verdict"] = "not applicable"
    (folder / "audit.json").write_text(json.dumps(stored), encoding="utf-8")
    (finding,) = Pack.open(folder).findings()
    assert set(finding) == {"gate", "title", "verdict", "figure", "figure_name", "threshold", "detail", "reason"}


def test_a_hash_that_is_none_is_told(make_pack: MakePack) -> None:
    folder = make_pack(balanced())
    pack = Pack.open(folder)
    table = pq.read_table(folder / MANIFEST)
    column = table.schema.get_field_index("perceptual_hash")
    values = ["no hash", *table["perceptual_hash"].to_pylist()[1:]]
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(values)), folder / MANIFEST, compression="zstd", store_schema=False)
    with pytest.raises(PackCorruptError, match=r"perceptual hash|hexadecimal"):
        run_gates(pack)

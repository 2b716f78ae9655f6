"""The audit on real files: near duplicates from the sources to the pack, the real archives, and how far a finding is carried."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageEnhance

from scanvit.cli import main
from scanvit.data.audit import Gate, audit
from scanvit.data.near_duplicates import NEAR_DUPLICATE_BITS
from scanvit.data.pack import Pack
from scanvit.data.phantoms.folder import draw_phantoms
from scanvit.data.prepare import PrepareSummary, prepare

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.integration


def scan(seed: int, side_px: int = 96) -> Image.Image:
    """Coarse shapes and fine grain, as a radiograph has them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(30, 220, (9, 9), np.uint8)).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse, np.float64) + random.normal(0, 4, (side_px, side_px)), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """120 patients with an image each; of twenty of them a copy is filed under a new patient: recompressed, resized, or with less contrast."""
    for number in range(120):
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        original = scan(number)
        (tmp_path / "scans" / "ab"[number % 2] / f"p{number:03d}_0.png").write_bytes(encoded(original))
        if number < 20:
            copies = (
                encoded(original.convert("L"), "JPEG", quality=60),
                encoded(original.resize((80, 80), Image.Resampling.BILINEAR)),
                encoded(ImageEnhance.Contrast(original).enhance(0.8)),
            )
            (tmp_path / "scans" / "ab"[number % 2] / f"q{number:03d}_0.png").write_bytes(copies[number % 3])
    values = {"sources": [{"name": "s", "path": "scans", "patient": "(?P<patient>[pq][0-9]+)_"}]}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / "sources.yaml"


def near_duplicate_gate(gates: Any) -> Gate:
    return next(gate for gate in gates if gate.gate == "G3")


def prepared(sources: Path, choice: str) -> PrepareSummary:
    return prepare(sources, sources.parent / choice, settings={"near_duplicates": choice}, workers=1)


def test_kept_copies_are_found_by_the_audit(sources: Path) -> None:
    summary = prepared(sources, "keep")
    gate = near_duplicate_gate(summary.gates)
    splits = {row["path"].split("/")[1][:4]: row["split"] for row in Pack.open(summary.pack).manifest.to_pylist()}
    apart = sum(splits[f"p{number:03d}"] != splits[f"q{number:03d}"] for number in range(20))
    assert apart > 5
    assert (gate.verdict, gate.figure) == ("fail", apart)
    assert sum(gate.measured["near_duplicate_pairs"]) == 20
    strangers = np.array(gate.measured["nearest_of_another_patient"])
    assert strangers[: NEAR_DUPLICATE_BITS + 1].sum() == 40
    copies = np.array(gate.measured["copies"])
    assert copies[: NEAR_DUPLICATE_BITS + 1].sum() > 0.8 * copies.sum(), "fine grain does not survive all of them"


def test_dropped_copies_are_in_the_quarantine(sources: Path) -> None:
    summary = prepared(sources, "drop")
    assert sorted(entry.path[2:6] for entry in summary.quarantined["near-duplicate"]) == [f"q{number:03d}" for number in range(20)]
    entry = min(summary.quarantined["near-duplicate"], key=lambda entry: entry.path[2:])
    assert entry.detail == "nearly the same as s: a/p000_0.png"
    assert summary.images_in == 140
    assert len(Pack.open(summary.pack).manifest) == 120
    gate = near_duplicate_gate(summary.gates)
    assert (gate.verdict, sum(gate.measured["near_duplicate_pairs"])) == ("pass", 0)
    assert Pack.open(summary.pack).settings["near_duplicates"] == "drop"


def test_moved_copies_stand_in_the_split_of_their_original(sources: Path) -> None:
    summary = prepared(sources, "move")
    rows = Pack.open(summary.pack).manifest.to_pylist()
    splits = {row["path"].split("/")[1][:4]: row["split"] for row in rows}
    assert len(rows) == 140
    assert [number for number in range(20) if splits[f"p{number:03d}"] != splits[f"q{number:03d}"]] == []
    assert {row["patient_id"] for row in rows} == {f"s:{name}" for name in splits}, "patients keep their own names"
    gate = near_duplicate_gate(summary.gates)
    assert (gate.verdict, sum(gate.measured["near_duplicate_pairs"])) == ("pass", 20)


def test_copies_follow_an_image_whose_split_is_kept(tmp_path: Path) -> None:
    for name, folder, numbers in (("old", "old/{split}", range(60)), ("new", "new", range(60, 100))):
        for number in numbers:
            where = tmp_path / folder.format(split=("train", "val", "test")[number % 3]) / "ab"[number // 3 % 2]
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{name}{number}_0.png").write_bytes(encoded(scan(number)))
            if name == "old" and number < 30:
                copy = tmp_path / "new" / "ab"[number // 3 % 2]
                copy.mkdir(parents=True, exist_ok=True)
                (copy / f"copy{number}_0.png").write_bytes(encoded(scan(number).convert("L"), "JPEG", quality=70))
    rule = "(?P<patient>(old|new|copy)[0-9]+)_"
    values = [{"name": "added", "path": "new", "patient": rule}, {"name": "known", "path": "old", "patient": rule, "split": "keep"}]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": values}), encoding="utf-8")
    moved = Pack.open(prepared(tmp_path / "sources.yaml", "move").pack).manifest.to_pylist()
    splits = {row["path"].rsplit("/", 1)[1].split("_")[0]: row["split"] for row in moved}
    assert [splits[f"copy{number}"] for number in range(30)] == [("train", "val", "test")[number % 3] for number in range(30)]
    dropped = prepared(tmp_path / "sources.yaml", "drop")
    assert {entry.source for entry in dropped.quarantined["near-duplicate"]} == {"added"}
    assert len(dropped.quarantined["near-duplicate"]) == 30


def test_copies_follow_an_original_of_an_earlier_pack(tmp_path: Path) -> None:
    for number in range(90):
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans" / "ab"[number % 2] / f"p{number:03d}_0.png").write_bytes(encoded(scan(number)))
    values = {"sources": [{"name": "s", "path": "scans", "patient": "(?P<patient>[a-z][0-9]+)_"}]}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    first = prepare(tmp_path / "sources.yaml", tmp_path / "first", workers=1)
    for number in range(30):  # the copies sort before their originals
        (tmp_path / "scans" / "ab"[number % 2] / f"c{number:03d}_0.jpeg").write_bytes(encoded(scan(number), "JPEG", quality=70))
    before = {row["path"]: row["split"] for row in Pack.open(first.pack).manifest.to_pylist()}
    for choice in ("move", "drop"):
        settings = {"near_duplicates": choice}
        summary = prepare(tmp_path / "sources.yaml", tmp_path / choice, keep=first.pack, settings=settings, workers=1)
        after = {row["path"]: row["split"] for row in Pack.open(summary.pack).manifest.to_pylist()}
        assert before.items() <= after.items()
        copies = {path: split for path, split in after.items() if path not in before}
        assert len(copies) == (30 if choice == "move" else 0)
        assert all(split == before[path.replace("/c", "/p").replace("jpeg", "png")] for path, split in copies.items())


def test_the_option_of_the_command(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", str(sources), "-o", str(sources.parent / "pack"), "--near-duplicates", "drop"]) == 0
    assert "near-duplicate: 20" in capfd.readouterr().out


def test_an_acknowledged_finding_reaches_checkpoint_scores_and_report(small_pack: Path, tmp_path: Path) -> None:
    reason = 'drawn <i>at random</i> & "known"'
    pack = tmp_path / "pack"
    pack.mkdir()
    for file in small_pack.iterdir():
        (pack / file.name).write_bytes(file.read_bytes())
    assert main(["data", "audit", str(pack)]) == 3
    failed = [gate["gate"] for gate in Pack.open(pack).findings()]
    assert "G1" in failed
    assert main(["data", "audit", str(pack), *(word for gate in failed for word in ("--acknowledge", f"{gate}={reason}"))]) == 0
    small = ["trainer.max_epochs=1", "model.depth=1", "model.dim=8", "model.stem_widths=[4, 4]", "tracking.mlflow=false", "trainer.accelerator=cpu"]
    settings = [word for setting in small for word in ("--set", setting)]
    assert main(["train", "tiny", "--pack", str(pack), "--run-dir", str(tmp_path / "run"), *settings]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--draws", "100"]) == 0
    carried = [torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["audit"]]
    carried.append(json.loads((tmp_path / "run" / "scores-test.json").read_text(encoding="utf-8"))["audit"])
    for findings in carried:
        assert [(gate["gate"], gate["verdict"], gate["reason"]) for gate in findings] == [(gate, "acknowledged", reason) for gate in failed]
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Acknowledged: drawn &lt;i&gt;at random&lt;/i&gt; &amp; " in report


@pytest.mark.slow
def test_the_phantoms_pass_every_gate(tmp_path: Path) -> None:
    draw_phantoms(tmp_path / "phantoms", patients_per_class=20)
    gates = prepare(tmp_path / "phantoms", tmp_path / "pack").gates
    assert {gate.gate: (gate.verdict, gate.detail) for gate in gates if gate.verdict != "pass"} == {}


@pytest.mark.slow
def test_the_real_archives_are_confounded_and_the_audit_says_by_what(shared_data: Path, tmp_path: Path) -> None:
    prepare(EXAMPLES / "real" / "sources.yaml", tmp_path / "pack", root=shared_data)
    gates = {gate.gate: gate for gate in audit(tmp_path / "pack")}
    assert gates["G4"].verdict == "fail"
    assert "lung-covid (100% from hannover-covid)" in gates["G4"].detail
    assert gates["G4"].measured["source_probe"]["recall"]["hannover-covid"] > 0.8
    assert gates["G4"].measured["border_probe"]["youden"]["lung-covid"] > 0.8
    assert "The file alone gives away: lung-covid." in gates["G5"].detail
    assert sum(gates["G3"].measured["near_duplicate_pairs"]) == 0
    assert len((tmp_path / "pack" / "audit.html").read_bytes()) < 1_000_000

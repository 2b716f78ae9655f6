from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.unit.evaluation.conftest import JudgedRun, build_pack

from scanvit.cli import main
from scanvit.core.errors import ConfigError, DataError, PackMismatchError
from scanvit.data.pack import Pack
from scanvit.evaluation.calibrate import calibrate
from scanvit.evaluation.external import ExternalData, check_contract, evaluate_external, external_name, find_known_images, map_classes
from scanvit.evaluation.scores import Scores
from scanvit.model.checkpoint import load_model, set_calibration

OWN = ("cnv", "drusen", "normal")


def digest(*parts: object) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def test_identical_names_map_by_themselves() -> None:
    assert map_classes(["cnv", "healthy", "rare"], OWN, {"healthy": "normal", "rare": ""}) == {"cnv": "cnv", "healthy": "normal", "rare": None}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "no class named 'healthy', 'rare'"),
        ({"healthy": "normal", "rare": "well"}, "knows no class 'well'"),
        ({"glaucoma": "cnv"}, "the pack has no class 'glaucoma'"),
        ({"healthy": "", "rare": "", "cnv": ""}, "Every class"),
    ],
)
def test_a_class_without_a_counterpart_is_refused(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_classes(["cnv", "healthy", "rare"], OWN, mapping)


def test_the_name_of_the_files_comes_from_the_packs_folder(tmp_path: Path) -> None:
    assert external_name(tmp_path / "Hospital B (2024)") == "external-Hospital-B-2024"


def test_images_that_the_run_was_trained_on_are_found(tmp_path: Path) -> None:
    """By their bytes, and by a hash that differs in few bits; those of its test split do not matter."""
    build_pack(tmp_path / "own", OWN, columns={"perceptual_hash": lambda *row: digest("own", *row), "sha256": lambda *row: digest("bytes", *row)})
    bytes_of = {("test", 5): digest("bytes", "train", 2), ("test", 6): digest("bytes", "test", 2)}
    near = {("test", 3): f"{int(digest('own', 'train', 1), 16) ^ 0b1011:064x}"}
    columns = {
        "sha256": lambda *row: bytes_of.get(row, digest("other bytes", *row)),
        "perceptual_hash": lambda *row: near.get(row, digest("other", *row)),
    }
    build_pack(tmp_path / "other", OWN, columns=columns)
    own, other = Pack.open(tmp_path / "own"), Pack.open(tmp_path / "other")
    ids = [f"test-{row:03d}" for row in range(8)]
    same, close = find_known_images(own, other, ids)
    assert [ids[i] for i in same.nonzero()[0]] == ["test-005"]
    assert [ids[i] for i in close.nonzero()[0]] == ["test-003"]


@pytest.fixture
def judged(make_run: Callable[..., JudgedRun], tmp_path: Path) -> tuple[JudgedRun, Path]:
    """A run, and a pack of other images with other names for its classes."""
    hashed = {"perceptual_hash": lambda *row: digest("other", *row), "sha256": lambda *row: digest("bytes", *row)}
    build_pack(tmp_path / "elsewhere", ("cnv", "healthy", "rare"), seed=5, source="abroad", columns=hashed)
    return make_run(), tmp_path / "elsewhere"


def test_a_run_is_judged_on_data_from_elsewhere(judged: tuple[JudgedRun, Path]) -> None:
    run, elsewhere = judged
    evaluate_external(run.run_dir, ExternalData(pack=elsewhere, split="test", mapping={"healthy": "normal", "rare": ""}), draws=20)
    scores = Scores.load(run.run_dir, "external-elsewhere")
    assert any("10 images of the classes that were left out (rare) are not judged" in note for note in scores.notes)
    assert scores.images == 21
    assert scores.shift is not None
    assert scores.shift.own_images == 21  # of cnv and normal
    assert scores.per_class["drusen"].images == 0
    page = (run.run_dir / "report-external-elsewhere.html").read_text(encoding="utf-8")
    assert "What has shifted" in page
    assert not (run.run_dir / "report.html").exists()
    assert set(pq.read_table(run.run_dir / "predictions-external-elsewhere.parquet")["source"].to_pylist()) == {"abroad"}


def test_what_did_not_pass_where_it_was_trained_stands_in_the_scores_of_other_data(make_run: Callable[..., JudgedRun], tmp_path: Path) -> None:
    gate = {"gate": "G3", "title": "Borders", "verdict": "acknowledged", "reason": "known"}
    run = make_run(gates=[gate, gate | {"gate": "G1", "title": "Patients", "verdict": "pass"}])
    hashed = {"perceptual_hash": lambda *row: digest("other", *row), "sha256": lambda *row: digest("bytes", *row)}
    build_pack(tmp_path / "elsewhere", OWN, seed=5, columns=hashed)
    scores = evaluate_external(run.run_dir, ExternalData(pack=tmp_path / "elsewhere", split="test"), draws=0)
    told = "The audit of the data that the network was trained on has open findings: Borders (acknowledged)."
    assert told in scores.notes
    assert told in (run.run_dir / "report-external-elsewhere.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("record", "why"), [({}, "it was never calibrated"), ({"format": 3}, "what was fitted on val is of an earlier version of scanvit")])
def test_why_nothing_is_told_of_trust_is_said_rightly(make_run: Callable[..., JudgedRun], tmp_path: Path, record: dict[str, int], why: str) -> None:
    run = make_run()
    set_calibration(run.run_dir / "checkpoint.pth", record and calibrate(load_model(run.run_dir), Pack.open(run.pack)).to_dict() | record)
    run.pack.rename(tmp_path / "moved")
    build_pack(tmp_path / "elsewhere", OWN, seed=5)
    scores = evaluate_external(run.run_dir, ExternalData(pack=tmp_path / "elsewhere", split="test"), draws=0)
    assert scores.trust is None
    assert f"What its answers can be trusted with is not told: {why}, and its pack was not found. Give it: --own-pack PACK" in scores.notes


def test_unmapped_classes_and_mapping_at_home_are_refused(judged: tuple[JudgedRun, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = judged
    assert main(["evaluate", str(run.run_dir), "--pack", str(elsewhere)]) == 10
    told = capsys.readouterr().err
    assert "'healthy', 'rare'" in told
    assert "--map healthy=CLASS" in told
    assert main(["evaluate", str(run.run_dir), "--map", "a=b"]) == 2


def test_images_of_another_size_are_refused(judged: tuple[JudgedRun, Path], tmp_path: Path) -> None:
    from scanvit.core.contract import PixelContract

    build_pack(tmp_path / "large", OWN, contract=PixelContract(image_size_px=32))
    with pytest.raises(PackMismatchError, match=r"32 px .* 16 px") as error:
        check_contract(load_model(judged[0].run_dir), Pack.open(tmp_path / "large"))
    assert "--image-size 16 --channels 1" in (error.value.hint or "")


def test_known_images_are_refused_where_that_was_asked(make_run: Callable[..., JudgedRun], tmp_path: Path) -> None:
    run = make_run()
    build_pack(tmp_path / "copy", OWN, seed=9)  # other pixels, the same digests
    data = ExternalData(pack=tmp_path / "copy", split="test", shared="refuse")
    with pytest.raises(DataError, match="are among the images that the run was trained on"):
        evaluate_external(run.run_dir, data, draws=0)

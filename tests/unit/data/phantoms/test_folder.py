from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.cli import main
from scanvit.core.errors import ConfigError, StorageError
from scanvit.data.pack import Pack
from scanvit.data.phantoms import chest, oct
from scanvit.data.phantoms.folder import CLASS_NAMES, PhantomSummary, _plan, draw_phantoms
from scanvit.data.prepare import prepare
from scanvit.data.sources import load_sources, matcher


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomSummary]:
    folder = tmp_path_factory.mktemp("phantoms") / "drawn"
    return folder, draw_phantoms(folder, patients_per_class=2, workers=1)


def metadata(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def image_files(folder: Path) -> set[str]:
    return {name for name in digests(folder) if name.startswith(("chest/", "oct/"))}


def flawed(folder: Path, flaw: str) -> Iterator[tuple[dict[str, str], bytes]]:
    rows = [row for row in metadata(folder) if row["flaw"] == flaw]
    assert rows
    for row in rows:
        yield row, (folder / row["path"]).read_bytes()


def test_the_number_of_processes_changes_no_byte(drawn: tuple[Path, PhantomSummary], tmp_path: Path) -> None:
    folder, summary = drawn
    assert draw_phantoms(tmp_path / "again", patients_per_class=2, workers=2) == summary
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_without_flaws_draws_other_patients_all_whole(drawn: tuple[Path, PhantomSummary], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = draw_phantoms(tmp_path / "other", patients_per_class=1, seed=1, flaws=False, workers=1, progress=lambda done, total: seen.append((done, total)))
    files = digests(tmp_path / "other")
    assert not {files[name] for name in image_files(tmp_path / "other")} & set(digests(drawn[0]).values())
    assert summary.flaws == {}
    assert len(image_files(tmp_path / "other")) == summary.images
    assert not any(row["flaw"] for row in metadata(tmp_path / "other"))
    assert seen[-1] == (summary.images, summary.images)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_summary_and_metadata_tell_what_is_there(drawn: tuple[Path, PhantomSummary]) -> None:
    folder, summary = drawn
    rows = metadata(folder)
    assert {row["path"] for row in rows} == image_files(folder)
    assert len(rows) == len(image_files(folder))
    assert summary.flaws == Counter(row["flaw"] for row in rows if row["flaw"])
    assert set(summary.flaws) == {"truncated", "empty", "no-image", "duplicate", "duplicate-other-patient"}
    assert summary.classes == Counter(row["class"] for row in rows if not row["flaw"])
    assert set(summary.classes) == set(CLASS_NAMES)
    assert summary.images == sum(summary.classes.values())
    assert summary.patients == len({row["patient_id"] for row in rows}) == 18
    assert summary.bytes == sum((folder / name).stat().st_size for name in image_files(folder))
    images_per_patient = Counter(row["patient_id"] for row in rows if not row["flaw"])
    assert set(images_per_patient.values()) <= {2, 3, 4}


def test_whole_images_open_at_realistic_sizes_and_differ(drawn: tuple[Path, PhantomSummary]) -> None:
    folder, _ = drawn
    seen = set()
    for row in metadata(folder):
        if row["flaw"]:
            continue
        with Image.open(folder / row["path"]) as image:
            pixels = np.asarray(image)
            assert image.mode == "L"
            assert image.format == {".png": "PNG", ".jpeg": "JPEG"}[Path(row["path"]).suffix]
        assert 384 <= pixels.shape[0] <= 640
        assert pixels.std() > 15
        seen.add(hashlib.sha256(pixels.tobytes()).digest())
    assert len(seen) == drawn[1].images


def test_planted_broken_files_cannot_be_decoded(drawn: tuple[Path, PhantomSummary]) -> None:
    folder, _ = drawn
    for row, _ in flawed(folder, "truncated"):
        with Image.open(folder / row["path"]) as image, pytest.raises(OSError, match="truncated"):
            image.load()
    assert [data for _, data in flawed(folder, "empty")] == [b""]
    for row, data in flawed(folder, "no-image"):
        assert row["path"].endswith(".png")
        assert data.isascii()


@pytest.mark.parametrize(("flaw", "same_patient"), [("duplicate", True), ("duplicate-other-patient", False)])
def test_planted_copies_are_byte_identical(drawn: tuple[Path, PhantomSummary], flaw: str, same_patient: bool) -> None:
    folder, _ = drawn
    originals = {(folder / row["path"]).read_bytes(): row for row in metadata(folder) if not row["flaw"]}
    for row, data in flawed(folder, flaw):
        assert originals[data]["class"] == row["class"]
        assert (originals[data]["patient_id"] == row["patient_id"]) is same_patient
        assert row["patient_id"] in row["path"]


def test_nothing_but_the_findings_tells_the_class() -> None:
    patients = _plan(300, seed=0)
    for class_name in CLASS_NAMES:
        mine = [patient for patient in patients if patient.class_name == class_name]
        assert 0.3 < np.mean([patient.extension == "png" for patient in mine]) < 0.5
        assert 0.4 < np.mean([patient.sex == "F" for patient in mine]) < 0.6
        assert 50 < np.mean([patient.age for patient in mine]) < 60
        assert 2.8 < np.mean([patient.images for patient in mine]) < 3.2
    assert len({patient.seed for patient in patients}) == len({patient.patient_id for patient in patients}) == 2700


@pytest.mark.parametrize("finding", chest.FINDINGS)
def test_chest_is_a_pure_function_of_finding_patient_and_image(finding: str) -> None:
    first = chest.draw_chest(finding, patient_seed=1, image_seed=2)
    assert first.dtype == np.uint8
    assert np.array_equal(first, chest.draw_chest(finding, patient_seed=1, image_seed=2))
    assert not np.array_equal(first, chest.draw_chest(finding, patient_seed=3, image_seed=2))
    assert not np.array_equal(first, chest.draw_chest(finding, patient_seed=1, image_seed=4))


@pytest.mark.parametrize("finding", oct.FINDINGS)
def test_oct_is_a_pure_function_of_finding_patient_and_image(finding: str) -> None:
    first = oct.draw_oct(finding, patient_seed=1, image_seed=2)
    assert first.dtype == np.uint8
    assert np.array_equal(first, oct.draw_oct(finding, patient_seed=1, image_seed=2))
    assert not np.array_equal(first, oct.draw_oct(finding, patient_seed=3, image_seed=2))
    assert not np.array_equal(first, oct.draw_oct(finding, patient_seed=1, image_seed=4))


def test_a_finding_lightens_the_same_lungs_and_leaves_the_rest() -> None:
    """With one patient, one pose and one exposure the pictures differ by the finding alone."""
    healthy = chest.draw_chest("normal", patient_seed=5, image_seed=6).astype(int)
    for finding in ("covid", "opacity", "viral-pneumonia", "tuberculosis"):
        change = chest.draw_chest(finding, patient_seed=5, image_seed=6).astype(int) - healthy
        assert change.max() > 30
        assert change.mean() > 0.3
        assert np.mean(np.abs(change) <= 2) > 0.4


def test_prepare_takes_the_folder_as_it_is(drawn: tuple[Path, PhantomSummary], tmp_path: Path) -> None:
    folder, summary = drawn
    result = prepare(folder, tmp_path / "pack", settings={"max_quarantine_share": 0.2}, workers=1)
    assert result.images_in == summary.images + sum(summary.flaws.values())
    in_pack: Counter[str] = Counter()
    for counts in result.counts.values():
        in_pack.update(counts)
    kept = sum(in_pack.values())
    quarantined = sum(len(files) for files in result.quarantined.values())
    assert kept + quarantined == result.images_in
    assert quarantined >= sum(summary.flaws[flaw] for flaw in ("truncated", "empty", "no-image", "duplicate"))
    assert all(in_pack[name] > 0 for name in CLASS_NAMES)


def test_the_command_that_stands_in_the_folder_works_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_phantoms(tmp_path / "drawn", patients_per_class=3, workers=2)
    monkeypatch.chdir(tmp_path / "drawn")
    head = Path("sources.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = head[head.index("scanvit ") :].split()
    assert main(command[1:]) == 0
    first = Pack.open("PACK").fingerprint
    assert main([*command[1:], "--overwrite"]) == 0
    assert Pack.open("PACK").fingerprint == first, "the pack that stands in the source is no part of it"


def test_sources_file_gives_each_image_its_class(drawn: tuple[Path, PhantomSummary]) -> None:
    folder, _ = drawn
    classes = [(name, matcher(patterns)) for source in load_sources(folder).sources for name, patterns in source.classes.items()]
    for row in metadata(folder):
        assert [name for name, matches in classes if matches(row["path"])] == [row["class"]]


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(StorageError, match="mine already exists"):
        draw_phantoms(tmp_path / "mine", patients_per_class=1)
    assert digests(tmp_path / "mine").keys() == {"note.txt"}


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".again.abcd_123.tmp"
    (leftover / "chest").mkdir(parents=True)
    draw_phantoms(tmp_path / "again", patients_per_class=1, workers=1, flaws=False)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_no_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patients_per_class is 0"):
        draw_phantoms(tmp_path / "none", patients_per_class=0)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, workers: int) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_phantoms(tmp_path / "half", patients_per_class=2, progress=interrupt, workers=workers)
    assert list(tmp_path.iterdir()) == []

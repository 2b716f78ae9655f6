"""DICOM from a source to a pack and to predictions: one pixel path, volumes as B-scans, and nothing that names a patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from scanvit.core.errors import ConfigError
from scanvit.data.decode import decode_frames
from scanvit.data.pack import Pack
from scanvit.data.prepare import prepare
from scanvit.evaluation.predict import predict_files

NAMING = {
    "PatientName": "Quimby^Zebedee",
    "PatientBirthDate": "19371224",
    "PatientAddress": "Wombat Lane 5",
    "OtherPatientIDs": "OTHER-9981",
    "IssuerOfPatientID": "St Swithun",
    "AccessionNumber": "ACC-55321",
    "InstitutionName": "Infirmary of Nowhere",
    "ReferringPhysicianName": "Physic^Ursula",
    "StudyInstanceUID": "1.2.826.0.1.3680043.77.88.99",
    "StudyDate": "20210304",
    "DeviceSerialNumber": "SER-7777",
}
SECRETS = ("Quimby", "Zebedee", "19371224", "Wombat", "OTHER-9981", "Swithun", "ACC-55321", "Infirmary", "Physic", "3680043", "20210304", "SER-7777", "PID-")


@pytest.fixture
def source(tmp_path: Path, make_dicom: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten patients; each has a volume of three B-scans and a single gray image. One file names nobody, one is damaged."""
    monkeypatch.setenv("SCANVIT_SALT", "0123456789abcdef")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("healthy", "ill")):
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        for patient in range(10):
            naming = NAMING | {"PatientID": f"PID-{label}{patient}"}
            volume = generator.integers(0, 256, (3, 20, 24), np.uint8)
            (folder / f"v{patient}.dcm").write_bytes(make_dicom(volume, **naming))
            single = generator.integers(0, 4096, (20, 24)).astype("<u2")
            (folder / f"IM{patient}").write_bytes(make_dicom(single, BitsStored=12, WindowCenter=2048, WindowWidth=4096, **naming))
    (tmp_path / "in" / "ill" / "nobody.dcm").write_bytes(make_dicom(np.zeros((9, 9), np.uint8), **{**NAMING, "OtherPatientIDs": None}))
    (tmp_path / "in" / "ill" / "damaged.dcm").write_bytes(make_dicom(np.ones((9, 9), np.uint8), **NAMING, PatientID="PID-99")[:-40])
    sources = "image_size_px: 16\nsources: [{name: clinic, path: in, patient: dicom}]\n"
    (tmp_path / "sources.yaml").write_text(sources)
    return tmp_path / "sources.yaml"


def test_volumes_become_b_scans_of_pseudonymous_patients(source: Path, tmp_path: Path) -> None:
    summary = prepare(source, tmp_path / "pack", workers=1)
    assert {reason: [entry.path for entry in entries] for reason, entries in summary.quarantined.items()} == {
        "no-patient": ["ill/nobody.dcm"],
        "unreadable": ["ill/damaged.dcm"],
    }
    assert sum(summary.patients.values()) == 20
    pack = Pack.open(tmp_path / "pack")
    pack.verify()
    rows = pack.manifest.to_pylist()
    assert len(rows) == len({row["image_id"] for row in rows}) == 20 * 4
    assert {row["format"] for row in rows} == {"DICOM"}
    for row in rows:
        file, _, frame = row["path"].partition("#")
        decoded = decode_frames((tmp_path / "in" / file).read_bytes(), pack.contract)
        np.testing.assert_array_equal(pack.images(row["split"])[row["row"]], decoded[int(frame or 1) - 1].pixels)
    owners: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row["patient_id"], set()).add(row["path"].partition("#")[0])
    assert all(len(files) == 2 for files in owners.values()), "the volume and the single image of a patient"


def test_the_same_salt_gives_the_same_pack_and_another_other_patients(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(source, tmp_path / "one", workers=1).fingerprint
    assert prepare(source, tmp_path / "two", workers=1).fingerprint == first
    monkeypatch.setenv("SCANVIT_SALT", "another-salt-altogether")
    prepare(source, tmp_path / "three", workers=1)
    patients = [set(Pack.open(tmp_path / name).manifest["patient_id"].to_pylist()) for name in ("one", "three")]
    assert not patients[0] & patients[1]


def test_keep_with_another_salt_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(source, tmp_path / "first", workers=1)
    prepare(source, tmp_path / "second", workers=1, keep=tmp_path / "first")
    monkeypatch.setenv("SCANVIT_SALT", "another-salt-altogether")
    with pytest.raises(ConfigError, match="pseudonyms of another salt") as caught:
        prepare(source, tmp_path / "third", workers=1, keep=tmp_path / "first")
    assert "SCANVIT_SALT" in str(caught.value.hint)
    assert not (tmp_path / "third").exists()


def test_nothing_that_names_a_patient_gets_into_a_pack(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "pack", workers=1)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "in" not in path.parents and path != source]
    assert {path.name for path in written} >= {"dataset.json", "manifest.parquet", "quarantine.jsonl", "audit.json"}
    for path in written:
        text = path.read_bytes().decode("latin-1")
        assert not [secret for secret in (*SECRETS, "0123456789abcdef") if secret in text], path
    table = Pack.open(tmp_path / "pack").manifest
    text = json.dumps(table.to_pylist()) + str(table.schema.metadata)
    assert not [secret for secret in SECRETS if secret in text]


def test_work_of_another_salt_is_not_taken_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("scanvit.data.placement._drop_duplicates", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "pack", workers=1)
    monkeypatch.setenv("SCANVIT_SALT", "another-salt-altogether")
    assert prepare(source, tmp_path / "pack", workers=1).reused == 0


def test_prediction_takes_the_same_way(source: Path, tmp_path: Path, make_dicom: Callable[..., bytes], scanvit: Callable[..., str]) -> None:
    prepare(source, tmp_path / "pack", workers=1)
    scanvit("train", "tiny", "--pack", tmp_path / "pack", "--run-dir", tmp_path / "run", "--set", "trainer.max_epochs=1", "--set", "tracking.mlflow=false")
    volume = tmp_path / "in" / "ill" / "v3.dcm"
    results = list(predict_files(tmp_path / "run", [volume, tmp_path / "in" / "ill" / "damaged.dcm", tmp_path / "in" / "ill" / "IM3"]))
    assert [result.image for result in results][:3] == [f"{volume}#{number:04d}" for number in (1, 2, 3)]
    assert [result.error is None for result in results] == [True, True, True, False, True]


REAL = {"ct": ["CT_small.dcm"], "mr": ["MR_small.dcm", "examples_overlay.dcm"]}
"""Of pydicom's own test files, by class. What they state: sex O, F and M; ages 000Y and 058Y, one none; three scanners; no view."""


def test_tags_of_real_files_become_subgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanvit: Callable[..., str]) -> None:
    pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
    monkeypatch.setenv("SCANVIT_SALT", "0123456789abcdef")
    random = np.random.default_rng(0)
    for class_name, names in REAL.items():
        (tmp_path / "in" / class_name).mkdir(parents=True)
        for name, number in product(names, range(10)):
            # The same scan of ten patients: another identity and other pixels, all else as the device wrote it.
            file = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / name)
            pixels = file.pixel_array
            pixels = pixels[: len(pixels) // 2 + 3 * number] // 2 + random.integers(0, max(2, pixels.max() // 2), pixels[: len(pixels) // 2 + 3 * number].shape)
            file.PatientID, file.Rows, file.PixelData = f"{name}-{number}", len(pixels), pixels.astype(file.pixel_array.dtype).tobytes()
            file.save_as(tmp_path / "in" / class_name / f"{number}-{name}")
    sources = "{image_size_px: 16, sources: [{name: clinic, path: in, patient: dicom, dicom_tags: [sex, age_band, view, scanner]}]}"
    (tmp_path / "sources.yaml").write_text(sources)
    prepare(tmp_path / "sources.yaml", tmp_path / "pack", workers=1)
    pack = Pack.open(tmp_path / "pack")
    stated = {tuple(row[name] or "" for name in ("class_name", "sex", "age_band", "view", "scanner")) for row in pack.manifest.to_pylist()}
    assert stated == {("ct", "O", "0-9", "", "RHAPSODE"), ("mr", "F", "", "", "MRT50H1"), ("mr", "M", "50-59", "", "Avanto")}

    ids = pack.rows("train", "image_id")["image_id"].to_pylist()
    is_mr = pack.targets("train") == 1
    table = pa.table({"image_id": ids, "ct": np.where(is_mr, 0.1, 0.9), "mr": np.where(is_mr, 0.9, 0.1)})
    pa.parquet.write_table(table, tmp_path / "other.parquet")
    axes = [word for name in ("sex", "age_band", "view", "scanner") for word in ("--by", name)]
    shown = scanvit("evaluate", "--predictions", tmp_path / "other.parquet", "--pack", tmp_path / "pack", "--split", "train", *axes)
    found = json.loads((tmp_path / "other" / "scores-train.json").read_text())["subgroups"]
    groups = {axis["name"]: {group["name"]: group["images"] for group in axis["groups"]} for axis in found}
    print(shown, groups)

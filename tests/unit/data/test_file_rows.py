from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.data.archives.open import open_archive
from scanvit.data.decode import decode_frames, decode_image
from scanvit.data.dicom.pseudonym import pseudonym
from scanvit.data.file_rows import Asked, decoding_key, owned, quarantined, rows_of_file, salt_of
from scanvit.data.selection import Candidate, select
from scanvit.data.sources import Source

CONTRACT = PixelContract(image_size_px=8)
SALT = b"a salt for tests alone"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(20 * 30, dtype=np.uint16).astype(np.uint8).reshape(20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_gives_one_row() -> None:
    (row,), (pixels,) = rows_of_file("a/b.png", png(), CONTRACT)
    np.testing.assert_array_equal(pixels, decode_image(png(), CONTRACT).pixels)
    assert (row["file"], row["path"], row["format"], row["width_px"], row["height_px"]) == ("a/b.png", "a/b.png", "PNG", 30, 20)
    assert row["sha256"] == hashlib.sha256(png()).hexdigest()
    assert "patient" not in row


def test_an_unreadable_file_gives_one_row_that_says_why() -> None:
    (row,), pixels = rows_of_file("a/b.png", b"no image", CONTRACT)
    assert not pixels
    assert (row["reason"], row["file"]) == ("unreadable", "a/b.png")
    assert quarantined("s", row).detail == row["error"]


def test_a_volume_gives_a_row_a_frame_each_with_its_own_hash(make_dicom: Callable[..., bytes]) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (11, 12, 10), np.uint8)
    data = make_dicom(volume)
    rows, pixels = rows_of_file("v.dcm", data, CONTRACT)
    assert [row["path"] for row in rows] == [f"v.dcm#{number:04d}" for number in range(1, 12)]
    assert {row["file"] for row in rows} == {"v.dcm"}
    assert len({row["sha256"] for row in rows}) == 11
    assert rows[6]["sha256"] == hashlib.sha256(f"{hashlib.sha256(data).hexdigest()}#7".encode()).hexdigest()
    for image, decoded in zip(pixels, decode_frames(data, CONTRACT), strict=True):
        np.testing.assert_array_equal(image, decoded.pixels)


def test_with_a_salt_a_dicom_file_names_its_patient_by_a_pseudonym(make_dicom: Callable[..., bytes]) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (row,), _ = rows_of_file("x.dcm", make_dicom(pixels, PatientID="4711", IssuerOfPatientID="h", PatientName="Doe^Jane"), CONTRACT, asked=Asked(salt=SALT))
    assert row["patient"] == pseudonym("h", "4711", SALT)
    candidate = Candidate("x.dcm", "a", "clinic:x.dcm", None, 1)
    assert owned(candidate, row).patient_id == f"clinic:{row['patient']}"
    assert owned(candidate, {}) == candidate
    assert not {"4711", "Doe"} & set("|".join(map(str, row.values())).replace("^", "|").split("|"))


def test_with_a_salt_a_file_without_a_patient_is_set_apart(make_dicom: Callable[..., bytes]) -> None:
    for data, why in ((make_dicom(np.zeros((4, 4), np.uint8)), "without a PatientID"), (png(), "only DICOM")):
        (row,), images = rows_of_file("x", data, CONTRACT, asked=Asked(salt=SALT))
        assert not images
        assert row["reason"] == "no-patient"
        assert why in row["error"]


def test_the_salt_is_asked_for_where_the_files_name_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANVIT_SALT", SALT.decode())
    named, plain = Source(name="a", path="a", patient="dicom"), Source(name="b", path="b")
    assert (salt_of(named), salt_of(plain)) == (SALT, None)
    key = decoding_key([named, plain])
    assert SALT.decode() not in str(key)
    monkeypatch.setenv("SCANVIT_SALT", "another salt for tests")
    assert decoding_key([named, plain]) != key
    assert decoding_key([plain, plain]) == decoding_key([plain, plain])


def test_files_without_an_ending_count_where_dicom_names_the_patients(tmp_path: Path) -> None:
    uid = "b/1.2.840.113619.2.5"
    for name in ("a/IM0001", uid, "a/DICOMDIR", "a/notes.txt", "a/.7"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = select(Source(name="s", path="s", patient="dicom"), open_archive(tmp_path))
    assert [candidate.path for candidate in found.candidates] == ["a/IM0001", uid]
    assert found.ignored == 3
    assert not select(Source(name="s", path="s"), open_archive(tmp_path)).candidates

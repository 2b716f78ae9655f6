from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import SourcesError
from scanvit.data.attributes import MOST_VALUES, age_band, clean, code_of, dicom_attributes
from scanvit.data.file_rows import Asked, rows_of_file
from scanvit.data.pack import Pack
from scanvit.data.prepare import prepare
from scanvit.data.sources import sources_from_dict

INNOCENT = ("GE 2019-05", "GE 2019-05-04", "10.1.12.3", "1.2.30 3T", "1.2.30-beta", "2000 12 bit", "2012 10:30", "2012345678", "2020 10 24h", "2020 PA 10:30")


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("63", "60-69"),
        ("063Y", "60-69"),
        ("89", "80-89"),
        ("90", "90+"),
        ("104Y", "90+"),
        ("011M", "0-9"),
        ("760M", "60-69"),
        ("", ""),
        ("old", ""),
        ("999", ""),
    ],
)
def test_ages_are_kept_in_bands_and_the_oldest_together(age: str, band: str) -> None:
    assert age_band(age) == band


def test_what_tells_people_apart_is_refused() -> None:
    codes: dict[str, int] = {}
    for value in ["", *(f"person {number}" for number in range(MOST_VALUES))]:
        code_of("name", codes, value)
    assert code_of("name", codes, "") == 0, "none is no value"
    with pytest.raises(SourcesError, match=f"more than {MOST_VALUES}"):
        code_of("name", codes, "one more")
    with pytest.raises(SourcesError, match=f"more than {MOST_VALUES}"):
        code_of("name", {str(number): number for number in range(MOST_VALUES)}, "one more")


@pytest.mark.parametrize(
    "value",
    [
        *("2021-03-04", "20210304", "4.3.2021", "3/4/21"),
        *("2020-01-01 10:00:00", "2020-01-01T10:00", "2020-01-01t10:00:00.5Z", "2020-01-01 10:00:00+01:00", "1/2/2020 3:04 PM"),
        *("20200101103000.000000+0100", "202001011030", "20200101 103000"),
        *("2024-01-02T10", "2024-01-02 10", "20240102T10Z", "2024010210", "2024-01-02 10 PM", "2024-01-02T10,5", "2024-W01-2"),
        *("2020-01-02, 10:30", "2020-01-02-10:30", "2020-01-02_10-30", "2020-01-02 at 10:30", "2020-01-02 (10:30)", "2.1.2020, 10.30"),
    ],
)
def test_a_date_is_refused_with_a_time_too(value: str) -> None:
    with pytest.raises(SourcesError, match="a date"):
        clean("seen", value)


@given(
    moment=st.datetimes(datetime(1800, 1, 1), datetime(2099, 12, 31)),
    day=st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%G-W%V-%u", "%GW%V%u", "%d.%m.%Y", "%m/%d/%Y"]),
    between=st.sampled_from(["T", "t", " ", ", ", "-", "_", " - ", "; "]),
    time=st.sampled_from(["%H", "%H:%M", "%H%M", "%H:%M:%S", "%H%M%S", "%H:%M:%S.%f", "%H%M%S,%f", "%H.5", "%I %p", "%I:%M %p"]),
    zone=st.sampled_from(["", "Z", "+01", "-0530", "+01:00", " UTC"]),
)
def test_a_date_is_refused_in_every_form_of_iso_8601_and_like_it(moment: datetime, day: str, between: str, time: str, zone: str) -> None:
    for form in (day, day + between + time + zone):
        with pytest.raises(SourcesError, match="a date"):
            clean("seen", moment.strftime(form))


@pytest.mark.parametrize("value", ["PA", "DX 1", "GE 2020", "Revolution 1.2.3", "2020-A", "12:30", "1024 x 1024", *INNOCENT])
def test_what_is_no_date_is_kept(value: str) -> None:
    assert clean("seen", value) == value


def test_nothing_else_of_a_dicom_file_is_kept(make_dicom: Callable[..., bytes]) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    private = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19500101", "InstitutionName": "General"}
    data = make_dicom(pixels, PatientSex="F", PatientAge="094Y", ViewPosition="PA", ManufacturerModelName="DX 1", **private)
    (row,), _ = rows_of_file("x.dcm", data, PixelContract(image_size_px=8), asked=Asked(tags=("sex", "age_band", "view", "scanner")))
    assert row["attributes"] == {"sex": "F", "age_band": "90+", "view": "PA", "scanner": "DX 1"}
    assert not any(value in str(row) for value in ("Doe", "4711", "1950", "General", "094"))
    assert dicom_attributes(data, ["PatientName"]) == {}
    assert dicom_attributes(make_dicom(pixels, PatientSex="Jane", ViewPosition="see Dr. Doe"), ["sex", "view"]) == {}


def test_columns_of_a_table_beside_the_source_reach_the_manifest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(random.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / "images" / name / f"p{number}-{name}.png")
    lines = [f"p{number},{'female' if number % 2 else 'M'},{number * 9},Mr. {number}" for number in range(11)]
    (tmp_path / "people.csv").write_text("who,Gender,Age,Name\n" + "\n".join(lines))
    source = {"name": "clinic", "path": "images", "patient": "(?P<patient>p[0-9]+)"}
    source["metadata"] = {"file": "people.csv", "patient": "who", "columns": {"sex": "Gender", "age_band": "Age"}}  # type: ignore[assignment]
    summary = prepare(sources_from_dict({"sources": [source], "image_size_px": 8}), tmp_path / "pack", root=tmp_path, workers=1)
    assert "clinic: people.csv says nothing of 2 of its 24 images." in summary.warnings
    pack = Pack.open(tmp_path / "pack")
    assert pack.attributes == ("age_band", "sex")
    rows = {row["patient_id"]: (row["sex"], row["age_band"]) for row in pack.manifest.to_pylist()}
    assert rows["clinic:p3"] == ("F", "20-29")
    assert rows["clinic:p10"] == ("M", "90+")
    assert rows["clinic:p11"] == ("", "")
    assert "Mr." not in str(pack.manifest.to_pylist())

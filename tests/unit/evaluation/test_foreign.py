from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from tests.unit.evaluation.conftest import build_pack

from scanvit.cli import main
from scanvit.core.errors import DataError, RunExistsError
from scanvit.data.pack import Pack
from scanvit.evaluation.foreign import evaluate_table, read_foreign

NAMES = ("cnv", "drusen", "normal")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build_pack(tmp_path / "pack", NAMES)
    return tmp_path / "pack"


def columns_of(pack: Path) -> dict[str, Any]:
    """Probabilities of 0.8 for the target of each test image."""
    opened = Pack.open(pack)
    probs = np.full((31, 3), 0.1)
    probs[np.arange(31), opened.targets("test")] = 0.8
    return {"image_id": opened.rows("test", "image_id")["image_id"].to_pylist(), **dict(zip(NAMES, probs.T, strict=True))}


@pytest.fixture
def write(tmp_path: Path, pack: Path) -> Callable[..., Path]:
    def write_table(ending: str = "parquet", rows: Any = slice(None), **changed: Any) -> Path:
        table = pa.table({name: values for name, values in (columns_of(pack) | changed).items() if values is not None}).take(np.arange(31)[rows])
        path = tmp_path / f"other.{ending}"
        (csv.write_csv if ending == "csv" else pq.write_table)(table, path)
        return path

    return write_table


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_table_in_any_order_is_read_in_the_packs(write: Callable[..., Path], pack: Path, ending: str) -> None:
    found = read_foreign(write(ending, slice(None, None, -1)), Pack.open(pack), "test").predictions
    assert found.image_ids == columns_of(pack)["image_id"]
    assert (found.predicted == found.targets).all()
    assert found.probs.max(axis=1) == pytest.approx(0.8)
    assert found.patient_ids[:3] == ["clinic:test0", "clinic:test0", "clinic:test1"]


def test_columns_may_be_numbered_and_tell_patients_and_targets(write: Callable[..., Path], pack: Path) -> None:
    values = columns_of(pack)
    numbered = dict.fromkeys(NAMES) | {f"prob_{k}": values[name] for k, name in enumerate(NAMES)}
    table = write("csv", **numbered, patient_id=[f"{i:03d}" for i in range(31)], target=["normal"] * 30 + ["0"])
    foreign = read_foreign(table, Pack.open(pack), "test")
    assert foreign.predictions.targets.tolist() == [2] * 30 + [0]
    assert foreign.predictions.patient_ids[1] == "001"
    assert any("targets of the table are not those of the pack" in note for note in foreign.notes)


GRADES = ("1", "10", "2")


def graded(tmp_path: Path, grades: tuple[str, ...] = GRADES) -> tuple[Pack, dict[str, Any], np.ndarray]:
    """A pack whose classes are numbers, image_id of its test images, and a probability of 0.8 for the class of each."""
    build_pack(tmp_path / "graded", grades)
    opened = Pack.open(tmp_path / "graded")
    probs = np.full((31, len(grades)), 0.2 / (len(grades) - 1))
    probs[np.arange(31), opened.targets("test")] = 0.8
    return opened, {"image_id": opened.rows("test", "image_id")["image_id"].to_pylist()}, probs


def read(pack: Pack, columns: dict[str, Any]) -> Any:
    path = pack.path.parent / "graded.parquet"
    pq.write_table(pa.table(columns), path)
    return read_foreign(path, pack, "test").predictions


@pytest.mark.parametrize("scheme", ["{name}", "prob_{name}", "prob_{k}"])
def test_where_classes_are_numbers_one_scheme_holds_for_the_whole_table(tmp_path: Path, scheme: str) -> None:
    """The column prob_2 is the third class where the classes are counted, though a class is called 2; so is the target 2."""
    pack, columns, probs = graded(tmp_path)
    columns |= {scheme.format(name=name, k=k): probs[:, k] for k, name in enumerate(GRADES)}
    if scheme == "prob_{k}":
        columns["target"] = pack.targets("test").tolist()
    found = read(pack, columns)
    assert (found.predicted == found.targets).all()
    assert (found.targets == pack.targets("test")).all()


def test_a_column_or_a_target_that_may_mean_two_classes_is_refused(tmp_path: Path) -> None:
    grades = tuple(sorted(map(str, range(11))))  # 0, 1, 10, 2, ..
    pack, columns, probs = graded(tmp_path, grades)
    with pytest.raises(DataError, match=r"two ways: the class '10' may be the column 'prob_10' or 'prob_2'"):
        read(pack, columns | {f"prob_{k}": probs[:, k] for k in range(11)})
    named = columns | {name: probs[:, k] for k, name in enumerate(grades)}
    with pytest.raises(DataError, match=r"target '2' .* may be the class of that name, or the class '10'"):
        read(pack, named | {"target": ["2"] * 31})
    assert (read(pack, named).predicted == pack.targets("test")).all()


def test_the_same_values_under_two_schemes_are_one_table(write: Callable[..., Path], pack: Path) -> None:
    values = columns_of(pack)
    numbered = {f"prob_{k}": values[name] for k, name in enumerate(NAMES)}
    found = read_foreign(write(**numbered), Pack.open(pack), "test").predictions
    assert (found.predicted == found.targets).all()
    with pytest.raises(DataError, match=r"two ways: the class 'cnv' may be the column 'cnv' or 'prob_0'"):
        read_foreign(write(**numbered | {"prob_0": values["drusen"], "prob_1": values["cnv"]}), Pack.open(pack), "test")


def test_a_table_that_scanvit_wrote_is_read_back(tmp_path: Path) -> None:
    grades = tuple(sorted(map(str, range(11))))
    pack, columns, probs = graded(tmp_path, grades)
    first = read(pack, columns | {name: probs[:, k] for k, name in enumerate(grades)})
    first.save(tmp_path / "written.parquet")
    again = read_foreign(tmp_path / "written.parquet", pack, "test").predictions
    assert (again.targets == first.targets).all()
    assert again.probs == pytest.approx(first.probs)
    build_pack(tmp_path / "others", NAMES)
    with pytest.raises(DataError, match="was written for the classes 0, 1, 10"):
        read_foreign(tmp_path / "written.parquet", Pack.open(tmp_path / "others"), "test")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_where_a_row_has_no_patient_all_are_the_packs(write: Callable[..., Path], pack: Path, ending: str) -> None:
    """A patient with two names would count twice."""
    told = [f"{i // 2:03d}" for i in range(31)]
    told[1::2] = ["" if ending == "csv" else None] * 15  # type: ignore[list-item]
    foreign = read_foreign(write(ending, patient_id=told), Pack.open(pack), "test")
    assert foreign.predictions.patient_ids == [f"clinic:test{i // 2}" for i in range(31)]
    assert "15 rows of the table have no patient_id; the pack's was used for all." in foreign.notes


@pytest.mark.parametrize("twice", ["image_id", "cnv"])
def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path, pack: Path, twice: str) -> None:
    table = pa.table(columns_of(pack))
    table = table.append_column(twice, table[twice])
    csv.write_csv(table, tmp_path / "twice.csv")
    with pytest.raises(DataError, match=f"2 columns named '{twice}'"):
        read_foreign(tmp_path / "twice.csv", Pack.open(pack), "test")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cnv": None}, "no column for the class 'cnv'"),
        ({"image_id": None}, "no column image_id"),
        ({"cnv": np.full(31, 0.5)}, "do not sum to one"),
        ({"cnv": np.full(31, -0.1)}, "no probabilities"),
        ({"cnv": np.full(31, np.nan)}, "no probabilities"),
        ({"cnv": ["x"] * 31}, "does not hold numbers"),
        ({"image_id": [f"test-{i:03d}" for i in range(30)] + ["test-000"]}, "stands in it twice"),
        ({"image_id": [f"test-{i:03d}" for i in range(30)] + ["who"]}, r"1 image \(who\)"),
        ({"target": ["glaucoma"] * 31}, "which is no class"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_in_a_sentence(write: Callable[..., Path], pack: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_foreign(write(**changed), Pack.open(pack), "test")


def test_missing_images_and_files_are_told(write: Callable[..., Path], pack: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks 2 images \(test-029, test-030\) of the 31"):
        read_foreign(write("parquet", slice(29)), Pack.open(pack), "test")
    with pytest.raises(DataError, match="no table"):
        read_foreign(tmp_path / "none.csv", Pack.open(pack), "test")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no table that can be read"):
        read_foreign(tmp_path / "bad.parquet", Pack.open(pack), "test")


def test_scores_and_report_without_a_checkpoint(write: Callable[..., Path], pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write("csv")
    assert main(["evaluate", "--predictions", str(table), "--pack", str(pack), "--draws", "20", "--prevalence", "cnv=0.02"]) == 0
    shown = capsys.readouterr().out
    assert "100.0\u202f%" in shown
    assert "nothing is known of the model" in shown
    assert f"scanvit compare {tmp_path / 'other'} OTHER_RUN" in shown
    assert "scanvit predict" not in shown, "there is no network to ask"
    scores = json.loads((tmp_path / "other" / "scores-test.json").read_text())
    assert scores["per_class"]["cnv"]["prevalence"] == 0.02
    page = (tmp_path / "other" / "report.html").read_text(encoding="utf-8")
    assert "nothing is known of the model" in page
    assert "Predictive values at the prevalence given" in page


def test_a_runs_own_folder_is_not_written_into(write: Callable[..., Path], pack: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pth").touch()
    with pytest.raises(RunExistsError):
        evaluate_table(write(), pack, tmp_path / "run")
    bare = write().rename(tmp_path / "bare")  # without an ending, the folder would have its name
    with pytest.raises(RunExistsError, match="is a file"):
        evaluate_table(bare, pack, bare)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--predictions", "t.csv"],
        ["run", "--predictions", "t.csv", "--pack", "p"],
        ["run", "-o", "x"],
        ["run", "--prevalence", "a=x"],
        ["--predictions", "t.csv", "--pack", "p", "--originals", "o"],
        ["--predictions", "t.csv", "--pack", "p", "--shared", "drop"],
        ["run", "--pack", "p", "--map", "1=1", "--map", "1=0"],
        ["run", "--prevalence", "a=0.1", "--prevalence", "a=0.2"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    assert main(["evaluate", *arguments]) == 2

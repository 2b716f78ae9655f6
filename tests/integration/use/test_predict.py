"""``scanvit predict`` on all that may be given to it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scanvit.cli import main
from scanvit.data.pack import Pack
from scanvit.evaluation.predict import predict_files

pytestmark = [pytest.mark.integration]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_export_and_its_run_say_the_same_of_all_kinds_of_paths(
    trained: Path, onnx_file: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures[0].parents[1]
    assert main(["predict", str(trained), *map(str, sorted(pictures))]) == 0
    expected = lines(capsys)
    assert [line["image"] for line in expected] == [str(path) for path in sorted(pictures)]
    (folder.parent / "list").write_bytes(b"\0".join(str(path).encode() for path in sorted(pictures)))
    for given in ([str(folder)], [f"{folder}/**/*.png"], ["--from-list", str(folder.parent / "list"), "-0"]):
        assert main(["predict", str(onnx_file), *given]) == 0
        found = lines(capsys)
        assert [line["image"] for line in found] == [line["image"] for line in expected]
        ours, theirs = ([list(line["probabilities"].values()) for line in answers] for answers in (expected, found))
        assert np.array(theirs) == pytest.approx(np.array(ours), abs=1e-4)
        assert [line["conformal_set"] for line in found] == [line["conformal_set"] for line in expected]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(sorted(pictures)[0].read_bytes())))
    assert main(["predict", str(onnx_file), "-"]) == 0
    (single,) = lines(capsys)
    assert (single["image"], single["prediction"]) == ("-", expected[0]["prediction"])


def test_first_readings_are_compared_in_a_table(
    onnx_file: Path, pictures: list[Path], small_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = Pack.open(small_pack).class_names
    with open(tmp_path / "readings.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["path", "who", "label"], *([path, "r", names[0]] for path in pictures), [tmp_path / "none.png", "r", names[0]], [pictures[0], "r", "?"]]
        )
    command = ["predict", str(onnx_file), "--from-list", str(tmp_path / "readings.csv"), "--first-reading", "label", "--format", "csv"]
    assert main([*command, "-o", str(tmp_path / "out.csv")]) == 4
    assert "1 first readings name no class" in capsys.readouterr().err
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pictures) + 2
    for row in rows[: len(pictures)]:
        assert row["agreement"] == ("agrees" if row["prediction"] == names[0] else "differs")
        assert row["prediction"] in json.loads(row["conformal_set"]) or float(row["probability"]) < 0.5
        assert float(row[f"probability of {row['prediction']}"]) == float(row["probability"])
    assert "cannot be read" in rows[-2]["error"]
    assert rows[-1]["agreement"] == "unknown class"


def test_a_damaged_file_costs_its_line_and_a_volume_has_one_a_frame(onnx_file: Path, pictures: list[Path], tmp_path: Path, make_dicom, capsys) -> None:  # type: ignore[no-untyped-def]
    for number in range(60):  # enough for processes to decode
        shutil.copy(pictures[number % len(pictures)], tmp_path / f"{number:03d}.png")
    (tmp_path / "030.png").write_bytes(pictures[0].read_bytes()[:60])
    (tmp_path / "volume.dcm").write_bytes(make_dicom(np.zeros((3, 16, 16), np.uint8)))
    assert main(["predict", str(onnx_file), str(tmp_path), "--workers", "2"]) == 4
    shown = capsys.readouterr()
    found = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["image"] for line in found[60:]] == [f"{tmp_path}/volume.dcm#000{n}" for n in (1, 2, 3)]
    assert [number for number, line in enumerate(found) if "error" in line] == [30]
    assert "030.png" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["a.png", "--first-reading", "label"], 2),
        (["a.png", "-0"], 2),
        (["--from-list", "none.txt"], 20),
        (["none.png"], 23),
        (["empty"], 23),
    ],
)
def test_what_cannot_be_done_is_said(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(onnx_file), *arguments, "-o", "out.jsonl"]) == code
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_memory_does_not_grow_with_the_number_of_files(onnx_file: Path, pictures: list[Path]) -> None:
    def peak(files: int) -> int:
        def paths() -> Iterator[Path]:
            for number in range(files):
                yield pictures[number % len(pictures)]

        tracemalloc.start()
        count = sum(1 for _ in predict_files(onnx_file, paths()))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == files
        return used

    peak(100)  # what is loaded once
    assert peak(2000) < 1.5 * peak(400)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scanvit.core.errors import DataError
from scanvit.evaluation.evaluate import evaluate
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.readings import read_readings
from scanvit.evaluation.scoring import Detail


def test_readings_are_found_by_image_whatever_their_order(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    file = tmp_path / "readings.csv"
    file.write_text("reader,image_id,reading\nanna,image-4,class-2\nanna,image-0,class-1\nanna,elsewhere,a-class-of-theirs\n", encoding="utf-8-sig")
    readings = read_readings(file, make_predictions([0, 1, 2] * 2))
    assert (readings.rows, readings.classes.tolist()) == ([0, 4], [1, 2])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image,reading\na,b\n", "no column 'image_id'"),
        ("image_id,reading\nimage-0,benign\n", "'benign' is no class"),
        ("image_id,reading\nimage-0\n", "None is no class"),
        ("image_id,reading\nimage-0,class-0\nimage-0,class-1\n", "line 3: 'image-0' was read before"),
        ("image_id,reading\nelsewhere,class-0\n", "no reading of any image"),
        ("", "no column 'image_id'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(make_predictions: Callable[..., Predictions], tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "readings.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=told):
        read_readings(file, make_predictions([0, 1, 2]))
    with pytest.raises(DataError, match="cannot be read"):
        read_readings(tmp_path / "nowhere.csv", make_predictions([0, 1, 2]))


def test_the_second_reader_is_judged_on_the_readings_that_were_given(make_run: Callable, tmp_path: Path) -> None:
    run = make_run()
    evaluate(run.run_dir, draws=0)
    table = Predictions.load(run.run_dir / "predictions-test.parquet")
    file = tmp_path / "readings.csv"
    # The first ten images, the first of them read wrongly.
    names = [table.class_names[(int(table.targets[i]) + (i == 0)) % 3] for i in range(10)]
    file.write_text("image_id,reading\n" + "".join(f"{table.image_ids[i]},{name}\n" for i, name in enumerate(names)))
    scores = evaluate(run.run_dir, draws=0, detail=Detail(readings=file))
    assert scores.trust is not None
    assert scores.trust.selective.readings == 10
    assert {row.reader_error for row in scores.trust.selective.second_reader} == {0.1}
    first = scores.trust.selective.second_reader[0]  # whatever the network's confidence
    assert first.cleared == pytest.approx(sum(table.class_names[table.predicted[i]] == names[i] for i in range(10)) / 10)
    assert json.loads((run.run_dir / "scores-test.json").read_text())["trust"]["selective"]["readings"] == 10
    assert "The first readings of 10 images were given." in (run.run_dir / "report.html").read_text(encoding="utf-8")

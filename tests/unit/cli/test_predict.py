from __future__ import annotations

import csv
import io
from types import SimpleNamespace
from typing import Any

import pytest

from scanvit.cli.predict import _any_name, _csv_writer, _no_formula, _Tally
from scanvit.core.errors import ImageError, PartialError

ENGINE: Any = SimpleNamespace(calibration=None, class_names=["a", "b"])


def result(image: str = "x.png", error: str | None = None, **said: Any) -> Any:
    told = {"image": image} | ({"error": error} if error else {"prediction": "a", "probability": 0.9}) | said
    return SimpleNamespace(error=ImageError(error) if error else None, judgement=said, to_dict=lambda: told)


def written(*results: Any) -> list[dict[str, str]]:
    stream = io.StringIO()
    write = _csv_writer(stream, ENGINE, with_reading=True)
    for one in results:
        write(one)
    return list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))


@pytest.mark.parametrize("name", ['=HYPERLINK("x").png', "+1.png", "-1.png", "@a.png", "\tx.png"])
def test_a_file_s_name_is_no_formula(name: str) -> None:
    (row,) = written(result(name, first_reading=name))
    assert row["image"] == row["first_reading"] == "'" + name
    assert row["probability"] == "0.9"
    assert _no_formula("\rx.png") == "'\rx.png"
    assert _no_formula(-1.5) == -1.5


@pytest.mark.parametrize("name", ["a=b.png", "-", "'=.png", "é.png"])
def test_other_names_stand_as_they_are(name: str) -> None:
    assert written(result(name))[0]["image"] == name


def test_a_name_that_is_no_utf_8_goes_out_as_it_came_in() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", newline="")
    with _any_name(out):
        _csv_writer(out, ENGINE, with_reading=False)(result(b"b\xff.png".decode("utf-8", "surrogateescape")))
        out.flush()
    assert b"b\xff.png" in out.buffer.getvalue()  # type: ignore[attr-defined]
    assert out.errors == "strict"


def test_the_first_bad_file_of_many_is_named_too(capsys: pytest.CaptureFixture[str]) -> None:
    tally = _Tally()
    tally.add(result(error="first.png is no image."))
    assert capsys.readouterr().err == ""
    tally.add(result())
    tally.add(result(error="third.png is no image."))
    assert capsys.readouterr().err.splitlines() == ["first.png is no image.", "third.png is no image."]
    with pytest.raises(PartialError, match="2 of 3"):
        tally.close()


def test_the_only_file_s_error_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    tally = _Tally()
    tally.add(result(error="only.png is no image."))
    with pytest.raises(ImageError, match=r"only\.png"):
        tally.close()
    assert capsys.readouterr().err == ""

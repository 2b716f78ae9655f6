from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.cli import main
from scanvit.data import image_stream
from scanvit.data.pack import Pack
from scanvit.evaluation.engines import open_engine
from scanvit.evaluation.predict import predict_files
from scanvit.evaluation.predictions import predict_split
from scanvit.model.checkpoint import load_model


@pytest.fixture
def images(make_run: Callable, tmp_path: Path) -> tuple[Path, list[Path]]:
    """The run, and the test images of its pack as PNG files."""
    run = make_run()
    paths = []
    for row, pixels in enumerate(Pack.open(run.pack).images("test")):
        paths.append(tmp_path / f"{row}.png")
        Image.fromarray(np.array(pixels[0])).save(paths[-1])
    return run.run_dir, paths


def test_a_file_gets_what_the_pack_gets(images: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, paths = images
    model = load_model(run_dir)
    expected = predict_split(model, Pack.open(model.experiment["data"]["pack"]), "test")
    monkeypatch.setattr(image_stream, "_CHUNK_FILES", 3)
    engine = open_engine(run_dir)
    engine.batch = 8  # of three blocks
    results = list(predict_files(engine, paths[::-1]))
    assert [result.image for result in results] == [str(path) for path in paths[::-1]]
    probs = np.array([list((result.probabilities or {}).values()) for result in results])
    assert probs == pytest.approx(expected.probs[::-1], abs=2e-6)


def test_bad_files_stand_in_their_place(images: tuple[Path, list[Path]], tmp_path: Path) -> None:
    run_dir, paths = images
    (tmp_path / "text.png").write_text("no image")
    mixed = [paths[0], tmp_path / "text.png", tmp_path / "none.png", tmp_path, paths[1]]
    results = [result.to_dict() for result in predict_files(run_dir, mixed)]
    assert ["error" in result for result in results] == [False, True, True, True, False]
    assert all(str(path) in result["error"] for path, result in zip(mixed[1:4], results[1:4], strict=True))
    assert results[0]["probability"] == max(results[0]["probabilities"].values()) == results[0]["probabilities"][results[0]["prediction"]]


def test_a_file_past_the_size_limit_is_not_read_whole(images: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, paths = images
    monkeypatch.setattr(image_stream, "MOST_BYTES", 10)
    (result,) = predict_files(run_dir, paths[:1])
    assert "larger than" in str(result.error)


def test_the_command_prints_a_json_line_an_image(images: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, paths = images
    assert main(["predict", str(run_dir), str(paths[3]), str(paths[1])]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(paths[3]), str(paths[1])]
    assert set(lines[0]) == {"image", "prediction", "probability", "probabilities"}
    assert set(lines[0]["probabilities"]) == {"cnv", "drusen", "normal"}


def test_the_exit_code_says_how_many_were_bad(images: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, paths = images
    bad = tmp_path / "bad\x1b[31m.png"
    bad.write_text("no image")
    assert main(["predict", str(run_dir), str(paths[0]), str(bad)]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[1])["image"] == str(bad)
    assert "\x1b[31m" not in shown.out + shown.err.replace("\x1b[31m\x1b[1merror:", "")
    assert main(["predict", str(run_dir), str(bad)]) == 23
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["predict", str(run_dir), str(bad), str(bad)]) == 23
    assert main(["predict", str(tmp_path / "none"), str(paths[0])]) == 41

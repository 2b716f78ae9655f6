from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scanvit.cli import main
from scanvit.core.errors import ConfigError, ExportError
from scanvit.data.pack import Pack
from scanvit.evaluation.calibrate import calibrate, is_current
from scanvit.evaluation.engines import open_engine
from scanvit.evaluation.estimates import Estimate
from scanvit.evaluation.export import Check, _judge, export
from scanvit.model.checkpoint import load_model, set_calibration
from scanvit.serving import server


@pytest.fixture
def without_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Pack.targets
    monkeypatch.setattr(Pack, "targets", lambda self, split: targets(self, split)[: 0 if split == "test" else None])


@pytest.mark.usefixtures("without_test_images")
def test_int8_is_refused_where_no_test_image_can_tell_its_cost(make_run: Callable, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(ConfigError, match="has no test images"):
        export(run.run_dir, tmp_path / "m.onnx", format="onnx", quantize="int8")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.usefixtures("without_test_images")
def test_generated_images_are_asked_about_for_the_reason_that_is_said(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert main(["export", str(run.run_dir), "--format", "safetensors"]) == 0
    assert "generated images, as the run's pack has no test images" in capsys.readouterr().out
    run.pack.rename(tmp_path / "elsewhere")
    assert main(["export", str(run.run_dir), "--format", "safetensors"]) == 0
    assert "generated images, as the run's pack is out of reach" in capsys.readouterr().out


def test_what_an_earlier_version_fitted_is_fitted_anew_or_named(
    make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(), tmp_path / "m.safetensors"
    fitted = calibrate(load_model(run.run_dir), Pack.open(run.pack)).to_dict()
    set_calibration(run.run_dir / "checkpoint.pth", fitted | {"format": 3, "temperature": 0.05})
    assert main(["export", str(run.run_dir), "--format", "safetensors", "-o", str(out)]) == 0
    assert "earlier version" not in capsys.readouterr().err
    record = open_engine(out).record["calibration"]
    assert is_current(record)
    assert record["temperature"] == pytest.approx(fitted["temperature"])
    run.pack.rename(tmp_path / "elsewhere")
    assert main(["export", str(run.run_dir), "--format", "safetensors", "-o", str(out)]) == 0
    assert "is of an earlier version of scanvit" in capsys.readouterr().err
    assert open_engine(out).record["calibration"]["temperature"] == 0.05
    main(["predict", str(out), str(tmp_path / "none.png"), "--workers", "0"])
    said = capsys.readouterr().err.splitlines()[0]
    assert "is of an earlier version of scanvit: evaluate the run" in said
    monkeypatch.setattr(server, "serve", lambda *_: None)
    assert main(["serve", str(out), "--port", "0"]) == 0
    assert capsys.readouterr().err == f"{said}\n", "in the same words"
    set_calibration(run.run_dir / "checkpoint.pth", fitted)
    assert main(["serve", str(run.run_dir), "--port", "0"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("drop", "named"), [(0.0537, "0.054"), (0.0102, "0.011"), (1.0, "1")])
def test_the_hint_names_a_loss_that_would_be_allowed(drop: float, named: str) -> None:
    check = Check(images=1000, where="test", difference=0.1, accuracy=0.8, drop=Estimate(value=drop))
    with pytest.raises(ExportError, match="nothing was written") as error:
        _judge(check, "onnx", max_drop=0.01)
    assert (error.value.hint or "").endswith(f"--max-drop {named}")
    _judge(check, "onnx", max_drop=float(named))

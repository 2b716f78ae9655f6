from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scanvit.core.errors import CheckpointError
from scanvit.data.pack import Pack
from scanvit.evaluation.calibrate import Calibration, calibrate, calibrate_checkpoint, is_current
from scanvit.evaluation.predictions import predict_split
from scanvit.model.checkpoint import load_model, set_calibration


def test_what_was_fitted_travels_in_the_checkpoint(make_run: Callable) -> None:
    run = make_run()
    path, pack = run.run_dir / "checkpoint.pth", Pack.open(run.pack)
    assert load_model(run.run_dir).temperature == 1.0
    assert predict_split(load_model(run.run_dir), pack, "test").outlier_scores is None
    calibrate_checkpoint(path, pack)
    model = load_model(run.run_dir)
    fitted = calibrate(model, pack)
    assert Calibration.from_dict(model.calibration).to_dict() == fitted.to_dict()
    assert model.temperature == fitted.temperature != 1.0
    assert {t.class_name for t in fitted.thresholds} == set(model.class_names)
    assert torch.load(path, weights_only=True)["calibration"]["temperature"] == fitted.temperature
    calibrate_checkpoint(path, pack)  # once more changes nothing
    assert load_model(run.run_dir).calibration == model.calibration


def test_it_tells_how_far_it_is(make_run: Callable) -> None:
    run, told = make_run(), list[tuple[int, int]]()
    calibrate(load_model(run.run_dir), Pack.open(run.pack), progress=lambda done, n: told.append((done, n)))
    n = Pack.open(run.pack).size("val") + Pack.open(run.pack).size("train")
    assert (told[0], told[-1]) == ((0, n), (n, n))
    assert told == sorted(told)


def test_the_temperature_lowers_the_loss_on_val_and_changes_no_answer(make_run: Callable) -> None:
    run = make_run()
    pack = Pack.open(run.pack)
    before = predict_split(load_model(run.run_dir), pack, "val")
    calibrate_checkpoint(run.run_dir / "checkpoint.pth", pack)
    after = predict_split(load_model(run.run_dir), pack, "val")
    assert after.losses.mean() < before.losses.mean()
    assert (after.predicted == before.predicted).all()
    assert (after.logits == before.logits).all()
    assert after.outlier_scores is not None
    assert (after.outlier_scores > 1).mean() <= 0.15  # nine images: at most one of them


def test_only_plain_data_is_kept(make_run: Callable) -> None:
    path = make_run().run_dir / "checkpoint.pth"
    with pytest.raises(TypeError, match="plain"):
        set_calibration(path, {"temperature": np.float64(2.0)})
    assert load_model(path).calibration == {}
    content = torch.load(path, weights_only=True) | {"calibration": 3}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="calibration"):
        load_model(path)


def test_a_record_of_an_earlier_version_can_be_used_but_is_not_current() -> None:
    threshold = {"class_name": "a", "rule": "sensitivity", "target": 0.95, "threshold": 0.3}
    record = {"temperature": 2.0, "thresholds": [threshold], "conformal": {"coverage": 0.9, "thresholds": [0.1]}}
    record["outliers"] = {"class_means": [[0.0]], "precision": [[1.0]], "limit": 1.0}  # of what the head reads, as it was before
    assert not is_current(record)
    found = Calibration.from_dict(record)
    assert (found.temperature, found.thresholds[0].threshold, found.thresholds[0].sensitivity, found.confidences) == (2.0, 0.3, None, ())
    assert found.outliers is None
    assert is_current(found.to_dict())

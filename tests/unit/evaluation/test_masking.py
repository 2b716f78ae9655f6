from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scanvit.data.pack import Pack
from scanvit.evaluation import masking
from scanvit.evaluation.inference import Inference
from scanvit.evaluation.masking import cover, judge_masked, shown_parts
from scanvit.evaluation.predictions import Predictions, predict_split
from scanvit.model.checkpoint import load_model


def test_the_parts_are_those_that_are_named() -> None:
    parts = shown_parts(64)
    assert {name: float(part.mean()) for name, part in parts.items()} == {
        "whole": 1.0,
        "centre_covered": 0.75,
        "border_only": 0.4375,  # the audit's frame: an eighth of each side
        "centre_only": 0.5625,
    }
    assert (parts["border_only"] ^ parts["centre_only"]).all()
    assert not parts["centre_covered"][32, 32]
    assert parts["border_only"][0].all()


def test_what_is_covered_lies_under_the_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 1, 16, 16), dtype=np.uint8)
    shown = shown_parts(16)["border_only"]
    covered = cover(pixels, shown)
    assert (covered[:, 0][:, shown] == pixels[:, 0][:, shown]).all()
    for before, after in zip(pixels, covered, strict=True):
        assert set(after[0][~shown]) == {round(float(before.mean()))}


def judged(
    make_predictions: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch, sees: str, *, patients: list[str] | None = None, blind: int = 0
) -> masking.Masking:
    """Of a network that reads the class from one pixel, at the border or in the middle; not in the first ``blind`` images."""
    targets = np.array([0, 1, 2] * 30)
    images = np.full((90, 1, 16, 16), 100, np.uint8)
    y, x = {"border": (0, 0), "middle": (8, 8)}[sees]
    images[:, 0, y, x] = targets * 100
    images[:blind, 0, y, x] = 100

    def infer(model: object, pixels: np.ndarray) -> Inference:
        logits = -np.abs(pixels[:, 0, y, x, None].astype(np.float32) - np.array([0, 100, 200], np.float32))
        return Inference(logits, logits)

    monkeypatch.setattr(masking, "infer", infer)
    predictions = make_predictions(targets.tolist(), strength=50.0, patients=patients)
    return judge_masked(None, images, predictions, draws=200, seed=0)  # type: ignore[arg-type]


def test_a_network_that_reads_the_border_is_found_out(make_predictions: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(make_predictions, monkeypatch, "border")
    values = {view.name: view.balanced_accuracy.value for view in found.views}
    assert values == {"whole": 1.0, "centre_covered": 1.0, "border_only": 1.0, "centre_only": pytest.approx(1 / 3)}
    assert found.chance == pytest.approx(1 / 3)


def test_a_network_that_reads_the_middle_is_not_blamed(make_predictions: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(make_predictions, monkeypatch, "middle")
    values = {view.name: view.balanced_accuracy.value for view in found.views}
    assert values == {"whole": 1.0, "centre_covered": pytest.approx(1 / 3), "border_only": pytest.approx(1 / 3), "centre_only": 1.0}
    assert not found.gives_away


@pytest.mark.parametrize("fewest", [1, 3])
def test_a_class_of_few_patients_is_told_beside_the_mean_over_classes(
    make_predictions: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    """All have fewer than five, so that all are counted: two have four patients."""
    patients = [f"{i % 3}-{(i // 3) % (fewest if i % 3 == 2 else 4)}" for i in range(90)]
    border = judged(make_predictions, monkeypatch, "border", patients=patients, blind=20).views[2].balanced_accuracy
    assert border.value is not None
    assert (border.low is None) == (fewest == 1)
    assert ("1 patient of 9" if fewest == 1 else "3 patients of one class") in (border.note or "")


def test_on_a_real_network_the_whole_image_is_what_was_judged(make_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    pack, model = Pack.open(run.pack), load_model(run.run_dir)
    predictions = predict_split(model, pack, "test")
    told: list[tuple[int, int]] = []
    found = judge_masked(model, pack.images("test"), predictions, draws=50, seed=0, progress=lambda done, total: told.append((done, total)))
    assert found.images == 31
    assert found.views[0].accuracy.value == pytest.approx((predictions.predicted == predictions.targets).mean())
    assert told[-1] == (93, 93)
    monkeypatch.setattr(masking, "MOST_IMAGES", 10)
    assert judge_masked(model, pack.images("test"), predictions, draws=20, seed=0).images == 8  # every fourth

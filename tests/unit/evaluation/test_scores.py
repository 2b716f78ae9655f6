from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanvit.core.errors import RunError, RunMissingError
from scanvit.evaluation.metrics import AVERAGED, PER_CLASS
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.scores import Scores, scores_path
from scanvit.evaluation.scoring import compute_scores

ABOUT: dict[str, Any] = {"run": "first", "experiment": "small", "split": "test", "audit": [], "cost": {"epochs": 2}}


def scored(predictions: Predictions, *, draws: int = 200) -> Scores:
    return compute_scores(predictions, about=ABOUT, draws=draws, seed=0)


def test_every_figure_has_its_interval(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1, 2] * 30))
    figures = [*scores.overall.values(), *(figure for of_class in scores.per_class.values() for figure in of_class.figures.values())]
    assert len(figures) == 7 + 2 * 7 + 3 * 8
    for figure in figures:
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        assert figure.note is None
    assert sum(map(sum, scores.confusion_matrix)) == scores.images == scores.patients == 90
    assert scores.interval == {"level": 0.95, "method": "BCa bootstrap over patients", "draws": 200, "seed": 0}


def test_one_patient_has_figures_and_no_interval(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1, 2] * 5, patients=["only"] * 15))
    assert scores.patients == 1
    assert scores.overall["accuracy"].value is not None
    assert scores.overall["accuracy"].low is None
    assert "1 patient" in (scores.overall["accuracy"].note or "")


def test_a_class_of_one_patient_has_no_interval_of_its_own(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1] * 20 + [2], strength=2.0))
    rare = scores.per_class["class-2"].figures
    assert rare["recall"].low is None
    assert rare["auroc"].low is None
    assert rare["specificity"].low is not None  # the other 40 patients stand behind it
    assert scores.overall["accuracy"].low is not None
    for name in ("balanced_accuracy", *(f"{kind}_{figure}" for kind in ("macro", "weighted") for figure in AVERAGED)):
        assert scores.overall[name].low is None, name
        assert "1 patient" in (scores.overall[name].note or "")


def test_a_mean_over_classes_of_which_one_has_few_patients_says_so(make_predictions: Callable[..., Predictions]) -> None:
    overall = scored(make_predictions([0, 1] * 20 + [2] * 4, strength=1.0)).overall
    assert overall["macro_auroc"].low is not None
    assert "4 patients of one class" in (overall["macro_auroc"].note or "")
    assert overall["log_loss"].note is None


def test_a_class_of_few_patients_says_so_beside_each_of_its_intervals(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1] * 20 + [2] * 4, strength=1.0))
    rare = scores.per_class["class-2"].figures
    assert rare["auroc"].low is not None
    assert rare["auroc"].note == "Behind it stand 4 patients, of 44: the interval says little."
    assert rare["specificity"].note is None
    assert scores.per_class["class-0"].figures["auroc"].note is None


def test_where_all_patients_are_few_they_are_not_said_to_be_of_one_class(make_predictions: Callable[..., Predictions]) -> None:
    overall = scored(make_predictions([0, 1] * 12, classes=2, patients=[f"patient-{i % 4}" for i in range(24)])).overall
    assert overall["accuracy"].low is not None
    assert overall["accuracy"].note == "Behind it stand 4 patients in all: the interval says little."
    assert overall["balanced_accuracy"].note == "Behind it stand 2 patients of one class: the interval says little."


def test_an_absent_class_is_null_with_a_note(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1] * 20))
    absent = scores.per_class["class-2"]
    assert (absent.images, absent.patients) == (0, 0)
    for name in ("recall", "auroc", "average_precision"):
        assert absent.figures[name].value is None
        assert absent.figures[name].note
    assert "class-2" in (scores.overall["macro_auroc"].note or "")
    assert scores.overall["macro_auroc"].value == pytest.approx(np.mean([scores.per_class[f"class-{k}"].figures["auroc"].value for k in (0, 1)]))


def test_an_undefined_figure_of_all_images_says_the_true_reason(make_predictions: Callable[..., Predictions]) -> None:
    table = make_predictions([0, 1, 2] * 10)
    logits = table.logits.copy()
    logits[:, 2] = -9
    never = scored(replace(table, logits=logits), draws=0).overall
    assert never["macro_precision"].note == "Undefined: no image was given the class class-2."
    logits[:, 1] = -9
    always = scored(replace(table, logits=logits), draws=0).overall
    assert always["mcc"].note == always["macro_npv"].note == "Undefined: every image was given the class class-0."
    alone = scored(make_predictions([1] * 10, strength=50.0), draws=0).overall
    assert "the split holds one class only" in (alone["macro_auroc"].note or "")


def test_a_figure_without_spread_claims_no_interval(make_predictions: Callable[..., Predictions]) -> None:
    scores = scored(make_predictions([0, 1, 2] * 10, strength=50.0))
    accuracy = scores.overall["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (1.0, None, None)
    assert f"{1 - 0.05 ** (1 / 30):.1%}" in (accuracy.note or "")  # 9.5 %: Clopper and Pearson's bound for 0 of 30
    assert "9.5%" in (accuracy.note or "")
    assert "of exceptions" not in (scores.overall["macro_auroc"].note or "")


def test_a_saturated_network_is_ranked_all_the_same(make_predictions: Callable[..., Predictions]) -> None:
    """The areas of two classes are the same area, seen from both ends: also where probabilities of float32 are 1 for all and 1e-12 for all."""
    table = make_predictions([0, 1] * 100, classes=2, strength=1.0)
    figures = {}
    for name, logits in (("plain", table.logits), ("steep", table.logits.astype(np.float64) * 30)):
        per_class = scored(replace(table, logits=logits), draws=0).per_class
        figures[name] = [per_class[f"class-{k}"].figures["auroc"].value for k in (0, 1)]
    assert figures["steep"][0] == pytest.approx(figures["steep"][1], abs=1e-12)
    assert figures["steep"] == pytest.approx(figures["plain"])


def test_no_draws_no_intervals(make_predictions: Callable[..., Predictions]) -> None:
    accuracy = scored(make_predictions([0, 1, 2] * 10), draws=0).overall["accuracy"]
    assert (accuracy.low, accuracy.high) == (None, None)
    assert accuracy.note


def test_the_file_is_strict_json_and_reads_back(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    scores = scored(make_predictions([0, 1] * 20))
    scores.save(tmp_path)

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    values = json.loads(scores_path(tmp_path, "test").read_text(), parse_constant=refuse)
    assert values["format"] == 3
    assert set(values["per_class"]["class-0"]) == {"images", "patients", "prevalence", *PER_CLASS}
    assert set(values["overall"]["accuracy"]) == {"value", "low", "high"}
    assert Scores.load(tmp_path) == scores


def test_a_file_of_the_format_before_is_read_without_what_it_does_not_hold(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    scores = scored(make_predictions([0, 1] * 20))
    scores.save(tmp_path)
    path = scores_path(tmp_path, "test")
    values = json.loads(path.read_text()) | {"format": 2}
    del values["trust"]
    path.write_text(json.dumps(values))
    assert Scores.load(tmp_path) == scores
    assert scores.trust is None


def test_a_run_that_was_not_scored_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(RunMissingError) as error:
        Scores.load(tmp_path, "val")
    assert f"scanvit evaluate {tmp_path} --split val" in (error.value.hint or "")
    with pytest.raises(RunMissingError, match="no run folder"):
        Scores.load(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "overall": {}, "per_class": {}}', '{"format": 2, "overall": 3}'])
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    scores_path(tmp_path, "test").write_text(text)
    with pytest.raises(RunError, match="cannot be used"):
        Scores.load(tmp_path)


def test_predictive_values_at_another_prevalence_are_the_published_ones(make_predictions: Callable[..., Predictions]) -> None:
    """Altman and Bland 1994 (BMJ 309:102), liver scans: 231 of 258 abnormal ones found, 54 of 86 others left alone. PPV 0.88 and NPV 0.67 at
    their prevalence of 0.75; at 0.25 a PPV of 0.45 and an NPV of 0.95."""
    targets = [1] * 258 + [0] * 86
    called = [1] * 231 + [0] * 27 + [0] * 54 + [1] * 32
    table = make_predictions(targets, classes=2)
    table = replace(table, logits=np.eye(2, dtype=np.float32)[called])
    figures = compute_scores(table, about=ABOUT, draws=0, seed=0, prevalence={"class-1": 0.25}).per_class["class-1"].figures
    assert (figures["precision"].value, figures["npv"].value) == (pytest.approx(0.88, abs=0.005), pytest.approx(0.67, abs=0.005))
    assert figures["precision_at_prevalence"].value == pytest.approx(0.45, abs=0.006)
    assert figures["npv_at_prevalence"].value == pytest.approx(0.95, abs=0.005)


def test_an_error_of_calibration_that_resamples_only_enlarge_has_no_interval(make_predictions: Callable[..., Predictions]) -> None:
    """Each probability is right exactly as often as it says: the error is 0, and nearly every resample's is more."""
    targets, sure = zip(*((int(i >= 20 * sure), sure) for sure in (0.55, 0.65, 0.75, 0.85, 0.95) for i in range(20)), strict=True)
    table = make_predictions(targets, classes=2)
    logits = np.log(np.stack([sure, 1 - np.array(sure)], axis=1)).astype(np.float32)
    ece = compute_scores(replace(table, logits=logits), about=ABOUT, draws=200, seed=0).overall["ece"]
    assert ece.value == pytest.approx(0, abs=1e-7)
    assert ece.low is None
    assert "one side" in (ece.note or "")

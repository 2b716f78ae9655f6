from __future__ import annotations

from collections.abc import Callable

from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.report.summary import summarize
from scanvit.evaluation.scoring import compute_scores

ABOUT = {"run": "r", "experiment": "e", "split": "test", "audit": []}


def test_a_class_of_few_patients_is_never_called_the_weakest(make_predictions: Callable[..., Predictions]) -> None:
    targets = [0] * 60 + [1] * 60 + [2]
    predictions = make_predictions(targets)
    predictions.logits[-1] = [9, 0, 0]  # the only image of the last class is missed
    summary = summarize(compute_scores(predictions, about=ABOUT, draws=20, seed=0))
    assert summary["weakest"]["name"] != "class-2"
    assert summary["few"] == [("class-2", 1)]
    assert summary["sure"] is None  # nothing about trust is known

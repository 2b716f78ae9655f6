"""Per-class metrics of an epoch, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

from scanvit.training.module import per_class_metrics


def test_per_class_metrics_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, 200), generator.integers(0, 3, 200)
    values = per_class_metrics(torch.from_numpy(confusion_matrix(truth, predicted)), ("a", "b", "c"))
    assert values["val_accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    for index, name in enumerate("abc"):
        assert values[f"val_precision/{name}"] == pytest.approx(precision_score(truth, predicted, average=None)[index])
        assert values[f"val_recall/{name}"] == pytest.approx(recall_score(truth, predicted, average=None)[index])


def test_what_is_undefined_is_unknown_and_not_zero() -> None:
    values = per_class_metrics(torch.tensor([[3, 0], [0, 0]]), ("seen", "absent"))
    assert values["val_precision/seen"] == 1.0
    assert math.isnan(values["val_recall/absent"])
    assert math.isnan(values["val_precision/absent"])

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from scanvit.data.pack import Pack
from scanvit.evaluation import saliency
from scanvit.evaluation.predictions import Predictions, predict_split
from scanvit.evaluation.saliency import choose_cases, explain_cases
from scanvit.model.checkpoint import load_model


def test_the_surest_errors_come_first_then_the_surest_right_one_of_each_class(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions([0, 1, 1, 2, 2, 2] * 20)
    certainty = predictions.probs.max(axis=1)
    cases = choose_cases(predictions)
    wrong, right = [case.row for case in cases if not case.is_right], [case.row for case in cases if case.is_right]
    missed = np.flatnonzero(predictions.predicted != predictions.targets)
    assert wrong == missed[np.argsort(-certainty[missed], kind="stable")][: saliency.MOST_ERRORS].tolist()
    assert [int(predictions.targets[row]) for row in right] == [2, 1, 0]  # the commonest first
    for row in right:
        own = (predictions.targets == predictions.targets[row]) & (predictions.predicted == predictions.targets)
        assert certainty[row] == certainty[own].max()


def test_every_case_has_its_maps_and_random_weights_other_ones(make_run: Callable) -> None:
    run = make_run()
    pack, model = Pack.open(run.pack), load_model(run.run_dir)
    predictions, state = predict_split(model, pack, "test"), torch.random.get_rng_state()
    told: list[tuple[int, int]] = []
    cases, found = explain_cases(model, pack.images("test"), predictions, progress=lambda done, total: told.append((done, total)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (found.explained, found.left_out) == (len(cases), 0)
    assert all({"relevance", "rollout"} <= set(case.maps) for case in cases)
    assert sum("occlusion" in case.maps for case in cases) == saliency.MOST_OCCLUDED
    assert {case.is_right for case in cases if "occlusion" in case.maps} == {True, False}
    assert all(values.shape == (4, 4) for case in cases for method, values in case.maps.items() if method != "occlusion")
    assert [(check.method, check.images) for check in found.checks] == [("relevance", 8), ("rollout", 8), ("occlusion", saliency.MOST_OCCLUDED)]
    assert all(-1 <= check.correlation <= 1 and check.is_changed == (check.correlation < saliency.CHANGED_BELOW) for check in found.checks)
    assert told[-1][0] == told[-1][1]


def test_when_the_time_is_over_what_is_left_stays_without_maps(make_run: Callable) -> None:
    run = make_run()
    pack, model = Pack.open(run.pack), load_model(run.run_dir)
    cases, found = explain_cases(model, pack.images("test"), predict_split(model, pack, "test"), limit_s=-1)
    assert found.explained == 0
    assert found.left_out == len(cases)
    assert found.checks == []


def test_a_map_without_any_difference_follows_nothing() -> None:
    flat, other = np.zeros((4, 4), np.float32), np.arange(16, dtype=np.float32).reshape(4, 4)
    assert saliency._rank_correlation(flat, other) == 0.0
    assert saliency._rank_correlation(other, other**2) == 1.0

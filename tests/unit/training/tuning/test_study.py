from __future__ import annotations

import math
from pathlib import Path

import pytest

from scanvit.training.tuning.space import Range
from scanvit.training.tuning.study import JOURNAL, Metric, Pruner, Study

SPACE = {
    "optimizer.lr": Range.parse("", "loguniform(1e-4, 1e-2)"),
    "model.stem_widths": Range.parse("", "choice([8, 8], [8, 16])"),
    "model.depth": Range.parse("", "int(1, 4)"),
}


def opened(folder: Path, *, metric: Metric = "val_loss", pruner: Pruner = "median", seed: int = 0) -> Study:
    return Study(folder, SPACE, metric=metric, pruner=pruner, seed=seed, max_epochs=5)


def completed(study: Study, values: list[float]) -> None:
    for value in values:
        number = study.ask()
        for epoch in range(1, 6):
            study.report(number, epoch=epoch, value=value)
        study.end(number, "complete", value=value, best_epoch=5, time_s=1.0)


def test_what_is_tried_does_not_depend_on_how_often_the_search_was_killed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    study = opened(tmp_path / "a")
    completed(study, [0.5, 0.4, 0.6])
    for value in (0.5, 0.4, 0.6):
        completed(opened(tmp_path / "b"), [value])
    assert [row.params for row in opened(tmp_path / "b").rows()] == [row.params for row in study.rows()]
    assert len({row.params["optimizer.lr"] for row in study.rows()}) == 3
    assert all(row.params["model.stem_widths"] in ([8, 8], [8, 16]) for row in study.rows())


def test_a_trial_under_way_is_found_again_with_its_settings_and_its_epochs(tmp_path: Path) -> None:
    study = opened(tmp_path)
    number = study.ask()
    params = study.params(number)
    study.report(number, epoch=1, value=0.7)
    again = opened(tmp_path)
    assert again.unfinished() == [number]
    assert again.params(number) == params
    again.report(number, epoch=1, value=9.9)  # a resumed run tells its last epoch once more
    again.report(number, epoch=2, value=0.6)
    again.end(number, "complete", value=0.6)
    assert (len(again), again.unfinished(), again.rows()[0].epochs, again.rows()[0].value) == (1, [], 2, 0.6)


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    completed(opened(tmp_path), [0.5])
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    completed(opened(tmp_path), [0.4])
    assert [row.value for row in opened(tmp_path).rows()] == [0.5, 0.4]


@pytest.mark.parametrize(("metric", "best"), [("val_loss", 1), ("val_accuracy", 2)])
def test_the_best_is_the_lowest_loss_or_the_highest_accuracy(tmp_path: Path, metric: Metric, best: int) -> None:
    study = opened(tmp_path, metric=metric)
    completed(study, [0.5, 0.2, 0.9])
    assert study.ranked()[0].number == best


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
def test_a_trial_worse_than_the_median_is_given_up_and_a_better_one_is_not(tmp_path: Path, metric: Metric) -> None:
    study = opened(tmp_path, metric=metric)
    completed(study, [0.4, 0.5, 0.6, 0.5])
    low, high = study.ask(), study.ask()
    given_up = {number: any(study.report(number, epoch=epoch, value=value) for epoch in (1, 2, 3)) for number, value in ((low, 0.1), (high, 0.9))}
    assert given_up == {low: metric == "val_accuracy", high: metric == "val_loss"}


def test_a_bad_first_or_second_epoch_gives_nothing_up(tmp_path: Path) -> None:
    study = opened(tmp_path)
    completed(study, [0.4, 0.5, 0.6, 0.5])
    number = study.ask()
    assert [study.report(number, epoch=epoch, value=value) for epoch, value in ((1, 0.9), (2, 0.9), (3, 0.45))] == [False, False, False]


def test_nothing_is_given_up_without_a_pruner(tmp_path: Path) -> None:
    study = opened(tmp_path, pruner="none")
    completed(study, [0.1] * 4)
    number = study.ask()
    assert not any(study.report(number, epoch=epoch, value=99.0) for epoch in range(1, 6))


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_trial_that_diverged_is_a_failed_one(tmp_path: Path, value: float | None) -> None:
    study = opened(tmp_path)
    number = study.ask()
    study.report(number, epoch=1, value=math.nan)
    study.end(number, "complete", value=value)
    row = study.rows()[0]
    assert (row.state, row.value) == ("failed", None)
    assert "diverged" in str(row.error)
    assert study.ranked() == []

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scanvit.core.errors import RunMissingError
from scanvit.evaluation.champion import judge
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.scoring import compute_scores

PATIENTS = 60


def judged(folder: Path, *, right: float, seed: int = 0, prefix: str = "i", classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """A folder with scores and predictions: two images a patient, of which about ``right`` are named rightly."""
    random = np.random.default_rng(seed)
    targets = np.arange(2 * PATIENTS) % len(classes)
    hits = random.random(len(targets)) < right
    logits = random.normal(0, 0.1, (len(targets), len(classes))).astype(np.float32)
    logits[np.arange(len(targets)), np.where(hits, targets, (targets + 1) % len(classes))] += 2
    table = Predictions(
        image_ids=[f"{prefix}{n}" for n in range(len(targets))],
        patient_ids=[f"p{n // 2}" for n in range(len(targets))],
        sources=["s"] * len(targets),
        targets=targets,
        logits=logits,
        class_names=list(classes),
        fingerprint=prefix,
    )
    folder.mkdir()
    table.save(folder / "predictions-test.parquet")
    about = {"run": folder.name, "experiment": "made", "split": "test", "audit": []}
    compute_scores(table, about=about, draws=200, seed=0).save(folder)
    return folder


def test_a_clearly_worse_run_is_worse_and_a_better_or_equal_one_is_not(tmp_path: Path) -> None:
    champion = judged(tmp_path / "champion", right=0.9)
    poor = judge(judged(tmp_path / "poor", right=0.5, seed=1), champion)
    assert poor.worse
    assert "Paired on the 120 test images of 60 patients" in poor.sentence
    assert not judge(judged(tmp_path / "good", right=0.97, seed=2), champion).worse
    assert not judge(judged(tmp_path / "alike", right=0.88, seed=3), champion).worse
    assert not judge(champion, champion).worse


def with_a_rare_class(folder: Path, *, noise: float, seed: int, prefix: str = "i") -> Path:
    """Like the others but for ``noise``; the third class is of one patient, so that macro AUROC has no interval."""
    targets = np.r_[np.arange(200) % 2, 2, 2, 2]
    logits = np.random.default_rng(0).normal(0, 1.3, (203, 3)) + 2 * np.eye(3)[targets]
    logits += np.random.default_rng(seed).normal(0, noise, (203, 3))
    table = Predictions(
        image_ids=[f"{prefix}{n}" for n in range(203)],
        patient_ids=[f"p{min(n, 200)}" for n in range(203)],
        sources=["s"] * 203,
        targets=targets,
        logits=logits.astype(np.float32),
        class_names=["a", "b", "rare"],
        fingerprint=prefix,
    )
    folder.mkdir()
    table.save(folder / "predictions-test.parquet")
    compute_scores(table, about={"run": folder.name, "experiment": "made", "split": "test", "audit": []}, draws=200, seed=0).save(folder)
    return folder


@pytest.mark.parametrize("prefix", ["i", "j"])
def test_a_figure_without_an_interval_decides_nothing_and_it_says_so(tmp_path: Path, prefix: str) -> None:
    """Paired, and by the whole splits where no image is shared."""
    champion = with_a_rare_class(tmp_path / "champion", noise=0, seed=0)
    found = [judge(with_a_rare_class(tmp_path / f"{seed}", noise=0.02, seed=seed, prefix=prefix), champion) for seed in range(1, 9)]
    assert not any(judgement.worse for judgement in found)
    assert all("(not judged: no interval)" in judgement.sentence for judgement in found)
    assert judge(with_a_rare_class(tmp_path / "poor", noise=5, seed=1, prefix=prefix), champion).worse


def test_runs_on_other_images_are_judged_by_their_intervals_and_it_says_so(tmp_path: Path) -> None:
    champion = judged(tmp_path / "champion", right=0.9)
    poor = judge(judged(tmp_path / "poor", right=0.5, seed=1, prefix="j"), champion)
    assert poor.worse
    assert "share no test images" in poor.sentence
    assert not judge(judged(tmp_path / "alike", right=0.86, seed=3, prefix="k"), champion).worse


def test_only_the_common_images_count(tmp_path: Path) -> None:
    champion = judged(tmp_path / "champion", right=0.9)
    other = judged(tmp_path / "other", right=0.9, seed=1)
    file = other / "predictions-test.parquet"
    table = Predictions.load(file)
    table = replace(table, image_ids=[name if n < 30 else f"new{n}" for n, name in enumerate(table.image_ids)])
    table.save(file)
    assert "the 30 test images of 15 patients" in judge(other, champion).sentence


@pytest.mark.parametrize("shared", [2, 30, 70])
def test_a_few_shared_images_that_both_name_rightly_let_no_poor_run_through(tmp_path: Path, shared: int) -> None:
    """70 of 120 are more than half, and of 35 patients: enough to judge by. 30 are of 15."""
    champion = judged(tmp_path / "champion", right=0.9)
    poor = judged(tmp_path / "poor", right=0.4, seed=1, prefix="j")
    tables = [Predictions.load(folder / "predictions-test.parquet") for folder in (champion, poor)]
    ids, logits = list(tables[1].image_ids), tables[1].logits.copy()
    ids[:shared], logits[:shared] = tables[0].image_ids[:shared], tables[0].logits[:shared]
    table = replace(tables[1], image_ids=ids, logits=logits)
    table.save(poor / "predictions-test.parquet")
    compute_scores(table, about={"run": "poor", "experiment": "made", "split": "test", "audit": []}, draws=200, seed=0).save(poor)
    found = judge(poor, champion)
    assert found.worse == (shared < 70)
    assert ("the intervals of the whole splits were compared as well" in found.sentence) == (shared < 70)


def test_other_classes_cannot_be_compared(tmp_path: Path) -> None:
    found = judge(judged(tmp_path / "two", right=0.9, classes=("a", "b")), judged(tmp_path / "three", right=0.5))
    assert found.worse
    assert "other classes (a, b, c)" in found.sentence


def test_a_run_without_scores_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunMissingError):
        judge(tmp_path / "empty", judged(tmp_path / "champion", right=0.9))

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scanvit.cli import main
from scanvit.core.errors import RunError, RunMissingError
from scanvit.evaluation.compare import compare
from scanvit.evaluation.evaluate import evaluate
from scanvit.evaluation.predictions import Predictions

GATE = {"gate": "G4", "title": "Class & source", "verdict": "fail", "detail": "", "reason": None}


def test_runs_on_one_pack(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("first", lr=1e-4), make_run("second", lr=3e-4, weights_seed=1)]
    for run in runs:
        evaluate(run.run_dir, draws=50)
    comparison = compare([run.run_dir for run in runs], tmp_path / "comparison.html")
    assert [run.label for run in comparison.runs] == ["first", "second"]
    assert comparison.same_test
    assert comparison.warnings == []
    assert comparison.differences == {"optimizer.lr": [1e-4, 3e-4]}
    assert comparison.runs[0].strategy == "DDP, 2 processes, a processor"
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "optimizer.lr" in text
    assert "default-src 'none'" in text
    assert "2 runs compared" in text


def test_runs_on_other_packs_are_warned_of(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("first"), make_run("second", pack_seed=1), make_run("third", pack_seed=2, class_names=("a", "b"))]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    comparison = compare([run.run_dir for run in runs], tmp_path / "comparison.html")
    assert not comparison.same_test
    assert runs[1].fingerprint[:12] in comparison.warnings[0]
    assert "different classes" in comparison.warnings[1]
    assert "cannot be compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_open_findings_are_said_once(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("first", gates=[GATE]), make_run("second", gates=[GATE])]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    assert compare([run.run_dir for run in runs], tmp_path / "c.html").warnings == ["The audit of the data of all runs has open findings: Class & source."]
    assert "Class &amp; source" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_runs_of_the_same_name_are_told_apart(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("a/run"), make_run("b/run")]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    assert [run.label for run in compare([run.run_dir for run in runs], tmp_path / "c.html").runs] == [str(run.run_dir) for run in runs]


def test_one_run_is_nothing_to_compare(make_run: Callable, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to compare"):
        compare([make_run().run_dir], tmp_path / "c.html")


def test_a_run_without_scores_says_how_to_get_them(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run("first"), make_run("second")]
    evaluate(runs[0].run_dir, draws=20)
    with pytest.raises(RunMissingError, match=r"no scores-test\.json"):
        compare([run.run_dir for run in runs], tmp_path / "c.html")
    assert main(["compare", *(str(run.run_dir) for run in runs), "-o", str(tmp_path / "c.html")]) == 41
    assert f"scanvit evaluate {runs[1].run_dir}" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


def test_the_command_prints_the_table(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs = [make_run("first"), make_run("second", lr=0.5)]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    assert main(["compare", *(str(run.run_dir) for run in runs), "-o", str(tmp_path / "c.html")]) == 0
    shown = capsys.readouterr().out
    assert "differ in: optimizer.lr" in shown
    assert "DDP, 2 processes" in shown
    assert "60 s" in shown


def test_runs_on_packs_that_share_test_images_are_scored_on_those(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run("first"), make_run("second", pack_seed=1, weights_seed=1)]
    for run in runs:
        evaluate(run.run_dir, draws=50)
    # The first run's pack had fewer test images; all others are the same.
    whole = [Predictions.load(run.run_dir / "predictions-test.parquet") for run in runs]
    small = whole[0].take(range(20))
    small.save(runs[0].run_dir / "predictions-test.parquet")
    comparison = compare([run.run_dir for run in runs], tmp_path / "c.html")
    assert comparison.same_test
    assert comparison.common == "The packs differ. Scored on the 20 test images that all runs share; left out: 11 of second."
    assert comparison.warnings == []
    for run, table in zip(comparison.runs, whole, strict=True):
        accuracy = run.scores.overall["accuracy"]
        assert accuracy.value == pytest.approx(float((table.predicted[:20] == table.targets[:20]).mean()))
        assert run.scores.images == 20
        assert accuracy.low is not None
    assert "that all runs share" in (tmp_path / "c.html").read_text(encoding="utf-8")
    assert main(["compare", *(str(run.run_dir) for run in runs), "-o", str(tmp_path / "c.html")]) == 0
    assert "left out: 11 of second" in " ".join(capsys.readouterr().out.split())


def test_the_order_of_the_rows_does_not_matter_and_a_changed_label_is_left_out(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("first"), make_run("second", pack_seed=1)]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    table = Predictions.load(runs[1].run_dir / "predictions-test.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    targets = table.targets.copy()
    targets[3] = (targets[3] + 1) % 3
    shuffled = replace(
        table,
        image_ids=[table.image_ids[i] for i in order],
        patient_ids=["renamed"] * len(table),
        targets=targets[order],
        logits=table.logits[order],
    )
    before = compare([run.run_dir for run in runs], tmp_path / "c.html")
    assert before.common is not None
    shuffled.save(runs[1].run_dir / "predictions-test.parquet")
    after = compare([run.run_dir for run in runs], tmp_path / "c.html")
    assert after.common is not None
    assert "30 test images" in after.common
    assert "1 of first, 1 of second" in after.common
    rest = np.arange(len(table)) != 3
    assert after.runs[1].scores.overall["accuracy"].value == pytest.approx(float((table.predicted == table.targets)[rest].mean()))
    assert after.runs[1].scores.patients == after.runs[0].scores.patients > 1


def test_runs_without_common_images_or_predictions_are_warned_of(make_run: Callable, tmp_path: Path) -> None:
    runs = [make_run("first"), make_run("second", pack_seed=1)]
    for run in runs:
        evaluate(run.run_dir, draws=20)
    file = runs[1].run_dir / "predictions-test.parquet"
    table = Predictions.load(file)
    replace(table, image_ids=[f"other-{i}" for i in range(len(table))]).save(file)
    assert "different images" in compare([run.run_dir for run in runs], tmp_path / "c.html").warnings[0]
    file.unlink()
    assert not compare([run.run_dir for run in runs], tmp_path / "c.html").same_test

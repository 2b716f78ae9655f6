from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scanvit.cli import main
from scanvit.core.errors import ConfigError, RunError, RunMissingError
from scanvit.evaluation.compare import compare
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.seeds import _welch

GATE = {"gate": "G4", "title": "Class & source", "verdict": "fail", "detail": "", "reason": None}
MakeScored = Callable[..., Path]


def test_runs_on_one_pack(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first"), make_scored("second", settings={"optimizer.lr": 3e-4}, quality=1)]
    comparison = compare(runs, tmp_path / "comparison.html")
    assert [run.label for run in comparison.runs] == ["first", "second"]
    assert comparison.same_test
    assert comparison.common is None
    assert comparison.warnings == []
    assert comparison.differences == {"optimizer.lr": [1e-4, 3e-4]}
    assert comparison.runs[0].strategy == "DDP, 2 processes, a processor"
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "optimizer.lr" in text
    assert "default-src 'none'" in text
    assert "2 runs compared" in text
    assert "ROC curves" in text
    assert "DeLong" in text


def test_pairs_are_tested_on_the_same_images(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("weak", strength=0.5), make_scored("strong", strength=4.0), make_scored("third", strength=4.0, quality=1)]
    against_first = compare(runs, tmp_path / "c.html").pairs
    assert [(pair.first, pair.second) for pair in against_first] == [("weak", "strong"), ("weak", "third")]
    pair = against_first[0]
    assert pair.paired.images == 31
    assert pair.mcnemar_p >= pair.paired.mcnemar.p_value
    assert set(pair.delong_p) == {"class-0", "class-1", "class-2"}
    assert all(pair.delong_p[name] >= test.p_value for name, test in pair.paired.delong.items() if test)
    assert "strong names" in pair.sentence
    assert "more rightly than weak" in pair.sentence
    assert len(compare(runs, tmp_path / "c.html", pairs="all").pairs) == 3


def test_times_and_p_values_are_sorted_by_what_they_are(make_scored: MakeScored, tmp_path: Path) -> None:
    """The words are "1 min" and "< 0.001": their numbers lie beside them."""
    comparison = compare([make_scored("weak", strength=0.5), make_scored("strong", strength=4.0)], tmp_path / "c.html")
    page, paired = (tmp_path / "c.html").read_text(encoding="utf-8"), comparison.pairs[0].paired
    assert page.count('data-value="60.0"') == 2
    for p_value in [paired.mcnemar.p_value, *(test.p_value for test in paired.delong.values() if test)]:
        assert f'data-value="{p_value}"' in page


def test_a_class_that_cannot_be_tested_says_why(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored(name, classes=16, strength=strength) for name, strength in (("weak", 0.5), ("strong", 4.0))]  # of 16 patients, one a class
    pair = compare(runs, tmp_path / "c.html").pairs[0]
    assert set(pair.paired.delong.values()) == {None}
    assert "Needs two patients or more with the class, and two without it." in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_seeds_are_brought_together(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [
        make_scored(f"{lr}-{seed}", settings={"seed": seed, "optimizer.lr": lr}, quality=seed, strength=1 + 100 * lr) for lr in (0.01, 0.02) for seed in (1, 2)
    ]
    comparison = compare(runs, tmp_path / "c.html", group="optimizer.lr")
    accuracies = [run.scores.overall["accuracy"].value or 0.0 for run in comparison.runs]
    first, second = comparison.groups
    assert (first.name, first.seeds, second.name) == ("optimizer.lr=0.01", [1, 2], "optimizer.lr=0.02")
    spread = first.figures["accuracy"]
    assert spread is not None
    assert spread.mean == pytest.approx(np.mean(accuracies[:2]))
    assert spread.sd == pytest.approx(np.std(accuracies[:2], ddof=1))
    assert (spread.low, spread.high) == (min(accuracies[:2]), max(accuracies[:2]))
    assert spread.over_patients.value == pytest.approx(spread.mean)
    difference = comparison.group_differences[0]
    assert difference.over_patients.value == pytest.approx(difference.over_seeds.value)
    assert comparison.warnings == []
    assert "Several seeds of one setting" in (tmp_path / "c.html").read_text(encoding="utf-8")
    by_name = compare(runs, tmp_path / "c.html", group="experiment")
    assert [group.name for group in by_name.groups] == ["small"]
    assert any("differ in more than their seed: optimizer.lr" in warning for warning in by_name.warnings)
    assert any("have the same seed" in warning for warning in by_name.warnings)
    with pytest.raises(ConfigError, match="no run has such a setting"):
        compare(runs, tmp_path / "c.html", group="optimizer.momentum")


def test_energy_stands_where_a_gpu_told_it(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first", power_w=12.34), make_scored("second")]
    compare(runs, tmp_path / "c.html")
    assert "12.3 Wh" in (tmp_path / "c.html").read_text(encoding="utf-8")
    compare(runs[1:] * 2, tmp_path / "c.html")
    assert "Energy of" not in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_a_table_from_elsewhere_needs_no_settings(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first"), make_scored("table", quality=1)]
    for file in ("experiment.yaml", "events.jsonl"):
        (runs[1] / file).unlink()
    comparison = compare(runs, tmp_path / "c.html")
    assert comparison.differences == {}
    assert len(comparison.pairs) == 1


def test_runs_on_other_packs_are_warned_of(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first"), make_scored("second", fingerprint="e" * 64), make_scored("third", fingerprint="d" * 64, classes=2)]
    comparison = compare(runs, tmp_path / "comparison.html")
    assert not comparison.same_test
    assert comparison.pairs == []
    assert "e" * 12 in comparison.warnings[0]
    assert "different classes" in comparison.warnings[1]
    assert "cannot be compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_open_findings_are_said_once(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first", gates=[GATE]), make_scored("second", gates=[GATE])]
    assert compare(runs, tmp_path / "c.html").warnings == ["The audit of the data of all runs has open findings: Class & source."]
    assert "Class &amp; source" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_runs_of_the_same_name_are_told_apart(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("a/run"), make_scored("b/run")]
    assert [run.label for run in compare(runs, tmp_path / "c.html").runs] == [str(run) for run in runs]


def test_one_run_is_nothing_to_compare(make_scored: MakeScored, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to compare"):
        compare([make_scored()], tmp_path / "c.html")


def test_a_run_without_scores_says_how_to_get_them(make_scored: MakeScored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_scored("first"), make_scored("second")]
    (runs[1] / "scores-test.json").unlink()
    with pytest.raises(RunMissingError, match=r"no scores-test\.json"):
        compare(runs, tmp_path / "c.html")
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "c.html")]) == 41
    assert f"scanvit evaluate {runs[1]}" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


def test_the_command_prints_the_table(make_scored: MakeScored, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = [make_scored("first", power_w=5.0), make_scored("second", settings={"optimizer.lr": 0.5, "seed": 2}, quality=1)]
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "c.html"), "--group", "experiment"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown  # nothing is cut
    assert re.search(r"accuracy +95% interval +loss +macro AUROC", shown)
    assert re.search(r"epochs +time +images/s +Wh +parameters", shown)
    assert "differ in: seed, optimizer.lr" in shown
    assert "DDP, 2 processes" in shown
    assert "60 s" in shown
    assert "second less first" in shown
    assert "mean and standard deviation over seeds" in shown
    assert "5.0" in shown


def test_runs_on_packs_that_share_test_images_are_scored_on_those(make_scored: MakeScored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_scored("first"), make_scored("second", fingerprint="e" * 64, quality=1)]
    # The first run's pack had fewer test images; all others are the same.
    whole = [Predictions.load(run / "predictions-test.parquet") for run in runs]
    whole[0].take(range(20)).save(runs[0] / "predictions-test.parquet")
    comparison = compare(runs, tmp_path / "c.html")
    assert comparison.same_test
    assert comparison.common == "The packs differ. Scored on the 20 test images that all runs share; left out: 11 of second."
    assert comparison.warnings == []
    assert comparison.pairs[0].paired.images == 20
    for run, table in zip(comparison.runs, whole, strict=True):
        accuracy = run.scores.overall["accuracy"]
        assert accuracy.value == pytest.approx(float((table.predicted[:20] == table.targets[:20]).mean()))
        assert run.scores.images == 20
        assert accuracy.low is not None
    assert "that all runs share" in (tmp_path / "c.html").read_text(encoding="utf-8")
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "c.html")]) == 0
    assert "left out: 11 of second" in " ".join(capsys.readouterr().out.split())


def test_the_order_of_the_rows_does_not_matter_and_a_changed_label_is_left_out(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first"), make_scored("second", fingerprint="e" * 64, quality=1)]
    table = Predictions.load(runs[1] / "predictions-test.parquet")
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
    shuffled.save(runs[1] / "predictions-test.parquet")
    after = compare(runs, tmp_path / "c.html")
    assert after.common is not None
    assert "30 test images" in after.common
    assert "1 of first, 1 of second" in after.common
    rest = np.arange(len(table)) != 3
    assert after.runs[1].scores.overall["accuracy"].value == pytest.approx(float((table.predicted == table.targets)[rest].mean()))
    assert after.runs[1].scores.patients == after.runs[0].scores.patients > 1


def test_runs_without_common_images_or_predictions_are_warned_of(make_scored: MakeScored, tmp_path: Path) -> None:
    runs = [make_scored("first"), make_scored("second", fingerprint="e" * 64)]
    file = runs[1] / "predictions-test.parquet"
    table = Predictions.load(file)
    replace(table, image_ids=[f"other-{i}" for i in range(len(table))]).save(file)
    assert "different images" in compare(runs, tmp_path / "c.html").warnings[0]
    file.unlink()
    assert not compare(runs, tmp_path / "c.html").same_test


def test_welchs_interval_is_scipys() -> None:
    first, second = [0.91, 0.93, 0.90], [0.95, 0.94, 0.97, 0.96]
    estimate, p_value = _welch(first, second)
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert p_value == pytest.approx(expected.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected.confidence_interval()))

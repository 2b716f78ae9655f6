from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from scanvit.cli import main
from scanvit.core.errors import PackMismatchError, PackMissingError, RunMissingError
from scanvit.evaluation.compare import compare
from scanvit.evaluation.evaluate import evaluate
from scanvit.evaluation.metrics import OVERALL_NAMES
from scanvit.evaluation.page import figure, interval
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.scores import Scores
from scanvit.model.checkpoint import load_model, set_calibration

HOSTILE = "<script>alert(1)</script>"
SCRIPT = files("scanvit.pages").joinpath("templates/page.js").read_text(encoding="utf-8")
VOID = {"meta", "link", "img", "br", "col"}
FAILED = {"gate": "G4", "title": "Class and source", "verdict": "acknowledged", "figure": 1.0, "detail": "One source a class.", "reason": "known"}
PASSED = {"gate": "G1", "title": "Patients", "verdict": "pass", "figure": 0, "detail": "None in two splits.", "reason": None}


class Page(HTMLParser):
    """Fails on a tag that is not closed; collects ids, references and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-labelledby" or (name == "href" and (value or "").startswith("#")):
                self.references.append((value or "").removeprefix("#"))
            if name in ("href", "src"):
                self.addresses.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)


def page(run_dir: Path, name: str = "report.html") -> Page:
    return Page((run_dir / name).read_text(encoding="utf-8"))


def test_everything_is_written_and_says_the_same(make_run: Callable) -> None:
    run = make_run(gates=[PASSED, FAILED])
    scores = evaluate(run.run_dir, draws=50)
    assert Scores.load(run.run_dir) == scores
    predictions = Predictions.load(run.run_dir / "predictions-test.parquet")
    assert len(predictions) == scores.images == 31
    assert scores.overall["accuracy"].value == pytest.approx((predictions.predicted == predictions.targets).mean())
    assert (scores.run, scores.experiment, scores.patients) == ("first", "small", 16)
    assert scores.checkpoint == predictions.checkpoint == {"epoch": 2, "step": 20, "val_loss": 0.75, "val_accuracy": 0.8}
    assert [gate["gate"] for gate in scores.audit] == ["G4"]
    assert scores.cost["train_time_s"] == 60
    assert scores.cost["images_per_s"] == 150
    assert scores.cost["epochs"] == 2
    assert scores.cost["device"] == "a processor"
    assert scores.cost["processes"] == 2
    assert scores.cost["parameters"] > 100


def test_the_same_run_gives_the_same_files(make_run: Callable) -> None:
    run = make_run()
    names = ("scores-test.json", "report.html", "predictions-test.parquet", "model-card.md", "data-card.md")
    evaluate(run.run_dir, draws=50)
    first = {name: (run.run_dir / name).read_bytes() for name in names}
    evaluate(run.run_dir, draws=50)
    assert {name: (run.run_dir / name).read_bytes() for name in names} == first


def test_the_report_is_whole_and_closed_to_the_network(make_run: Callable) -> None:
    run = make_run(gates=[PASSED, FAILED])
    evaluate(run.run_dir, draws=50)
    report = page(run.run_dir)
    assert len(report.ids) == len(set(report.ids))
    assert set(report.references) <= set(report.ids)
    assert report.scripts == [SCRIPT]  # ours, whole, and nothing else
    assert all(address.startswith(("#", "data:")) for address in report.addresses)
    text = (run.run_dir / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!data:image/(png|jpeg);base64,)|@import|https?://", text)
    words = " ".join(report.words)
    assert "One source a class." in words
    assert "Acknowledged: known" in words
    assert "31 images" in words
    assert "no medical device" in words
    assert len(text) < 1_000_000


def test_the_report_shows_every_figure_of_all_classes_with_its_interval(make_run: Callable) -> None:
    run = make_run()
    scores = evaluate(run.run_dir, draws=50)
    words = " ".join(page(run.run_dir).words)
    for name in OVERALL_NAMES:
        estimate = scores.overall[name]
        assert figure(estimate, name) in words
        assert interval(estimate, name) in words
    for title in ("Cohen's kappa", "Matthews' correlation", "Brier score", "Mean", "Weighted mean"):
        assert title in words


def test_hostile_names_are_shown_and_do_nothing(make_run: Callable) -> None:
    names = sorted([HOSTILE, '"><img src=x onerror=alert(2)>', "normal & well", "{{ 7 * 7 }}"])
    gate = FAILED | {"title": HOSTILE, "detail": HOSTILE, "reason": HOSTILE, "verdict": HOSTILE}
    run = make_run(class_names=names, source=HOSTILE, gates=[gate])
    evaluate(run.run_dir, draws=20)
    report = page(run.run_dir)
    assert report.scripts == [SCRIPT]
    assert "x" not in report.addresses
    words = "".join(report.words)
    assert HOSTILE in words
    assert "{{ 7 * 7 }}" in words


def test_a_pack_that_was_never_audited_is_said_to_be_so(make_run: Callable) -> None:
    unaudited = make_run("unaudited")
    evaluate(unaudited.run_dir, draws=0)
    assert "never audited" in " ".join(page(unaudited.run_dir).words)
    audited = make_run("audited", pack_seed=1, gates=[PASSED])
    evaluate(audited.run_dir, draws=0)
    words = " ".join(page(audited.run_dir).words)
    assert "never audited" not in words
    assert "all gates passed" in words


def test_another_split_has_its_own_files(make_run: Callable) -> None:
    run = make_run()
    scores = evaluate(run.run_dir, split="val", draws=20)
    assert scores.images == 9
    assert {path.name for path in run.run_dir.glob("*val*")} == {"predictions-val.parquet", "scores-val.json", "report-val.html"}
    assert not (run.run_dir / "report.html").exists()


def test_many_classes_and_absent_ones_can_be_reported(make_run: Callable) -> None:
    run = make_run(class_names=[f"class-{k:02d}" for k in range(40)])
    scores = evaluate(run.run_dir, draws=20)
    assert scores.overall["balanced_accuracy"].note
    assert "not judged at all" in " ".join(page(run.run_dir).words)


def test_a_run_of_bare_weights_can_be_reported(make_run: Callable) -> None:
    run = make_run()
    for name in ("events.jsonl", "environment.json"):
        (run.run_dir / name).unlink()
    scores = evaluate(run.run_dir, draws=20)
    assert scores.cost["train_time_s"] is None
    assert "kept no learning curves" in " ".join(page(run.run_dir).words)


def test_a_checkpoint_without_its_run_is_judged_and_shown(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, alone = make_run(), tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run.run_dir / "checkpoint.pth", alone)
    assert main(["evaluate", str(alone), "--pack", str(run.pack), "--draws", "20"]) == 0, capsys.readouterr().err
    assert "accuracy" in capsys.readouterr().out
    assert not (alone / "events.jsonl").exists(), "there is nothing to go on with"


def test_another_pack_is_refused_and_nothing_written(make_run: Callable) -> None:
    run, other = make_run("first"), make_run("second", pack_seed=1)
    before = sorted(run.run_dir.iterdir())
    with pytest.raises(PackMismatchError, match=other.fingerprint[:12]):
        evaluate(run.run_dir, pack=other.pack)
    assert sorted(run.run_dir.iterdir()) == before


def test_what_an_earlier_version_fitted_is_fitted_again(make_run: Callable) -> None:
    run = make_run()
    set_calibration(
        run.run_dir / "checkpoint.pth", {"temperature": 7.0, "thresholds": [], "conformal": {"coverage": 0.9, "thresholds": []}, "outlier_detector": None}
    )
    scores = evaluate(run.run_dir, draws=0)
    assert scores.trust is not None
    assert scores.trust.calibrated.temperature != 7.0
    assert load_model(run.run_dir).temperature == scores.trust.calibrated.temperature


def test_a_moved_pack_is_asked_for_and_taken(make_run: Callable, tmp_path: Path) -> None:
    run = make_run()
    shutil.move(run.pack, tmp_path / "elsewhere")
    with pytest.raises(PackMissingError) as error:
        evaluate(run.run_dir)
    assert "--pack" in (error.value.hint or "")
    assert evaluate(run.run_dir, pack=tmp_path / "elsewhere", draws=20).images == 31


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunMissingError, match="nowhere"):
        evaluate(tmp_path / "nowhere")
    with pytest.raises(RunMissingError, match=r"no checkpoint\.pth"):
        evaluate(tmp_path)


def test_the_command_shows_figures_and_where_the_report_is(make_run: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = make_run(class_names=["[red]cnv", "drusen\x1b[2J", "normal"], gates=[FAILED])
    assert main(["evaluate", str(run.run_dir), "--draws", "20"]) == 0
    shown = capsys.readouterr().out
    assert "[red]cnv" in shown
    assert "\x1b[2J" not in shown
    assert "Class and source" in shown
    assert str(run.run_dir / "report.html") in shown.replace("\n", "")
    accuracy = json.loads((run.run_dir / "scores-test.json").read_text())["overall"]["accuracy"]["value"]
    assert f"{100 * accuracy:.1f}" in shown


def test_a_run_with_settings_that_no_training_would_take_today_is_judged(make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(name).run_dir for name in ("today", "earlier")]
    of_earlier = runs[1] / "experiment.yaml"
    text = of_earlier.read_text().replace("timeout_s: 120.0", "timeout_s: 1000000.0\n  dropped_since: 1")
    of_earlier.write_text("".join(line for line in text.splitlines(keepends=True) if "cuda_graphs" not in line))
    for run_dir in runs:
        assert main(["evaluate", str(run_dir), "--draws", "20"]) == 0, capsys.readouterr().err
    differences = compare(runs, tmp_path / "c.html").differences
    assert differences == {"trainer.timeout_s": [120.0, 1e6], "trainer.dropped_since": ["–", 1]}, "what it did not know is today's default"
    assert main(["track", "status", str(runs[1])]) == 0, capsys.readouterr().err

"""What a search shows on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanvit.cli.tune import params_text, short_names, show
from scanvit.training.tuning.results import SearchResult
from scanvit.training.tuning.study import TrialRow

PARAMS = {
    "optimizer.lr": 0.000653123,
    "optimizer.weight_decay": 0.262,
    "loss.label_smoothing": 0.05,
    "augment.gamma": 0.213,
    "augment.mixup": 0,
    "ema.decay": 0.995,
}


def test_settings_are_named_by_their_last_word_unless_two_end_alike() -> None:
    assert short_names(["optimizer.lr", "optimizer.name", "schedule.name"]) == {
        "optimizer.lr": "lr",
        "optimizer.name": "optimizer.name",
        "schedule.name": "schedule.name",
    }
    assert params_text({"model.pool": "mean", "optimizer.lr": 1e-3}) == "pool=mean, lr=0.001"


def test_the_table_of_six_settings_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [TrialRow(number=n, state="complete", params=PARAMS, value=0.25, epochs=8, best_epoch=5, time_s=9.0, error=None) for n in (0, 1)]
    show(SearchResult(folder=tmp_path, metric="val_loss", rows=rows, ranked=rows[::-1]))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.endswith("0.995")] == [
        [number, "0.2500", "5", "of", "8", "0.000653", "0.262", "0.05", "0.213", "0", "0.995"] for number in ("1", "0")
    ]
    assert "…" not in "".join(shown)

"""What ``scanvit ray`` refuses before it imports anything slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanvit.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "Name an experiment"),
        (["train", "tiny", "--resume", "runs/x"], "leave out EXPERIMENT"),
        (["train", "--resume", "runs/x", "--set", "seed=1"], "leave out EXPERIMENT"),
        (["train", "--resume", "runs/x", "--name", "y"], "leave out EXPERIMENT"),
        (["submit"], "Name an experiment"),
        (["submit", "tiny"], "--storage"),
        (["submit", "tiny", "--resume", "s3://ray/x"], "leave out EXPERIMENT"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "tiny", "--num-workers", "0"], 10, "number of workers is 0"),
        (["train", "tiny", "--resources-per-worker", "GPU"], 10, "is no resource"),
        (["train", "tiny", "--set", "trainer.accelerator=gpu"], 10, "trainer.accelerator is gpu, but on the cluster it would be cpu"),
        (["train", "unknown"], 11, "no experiment 'unknown'"),
        (["train", "tiny"], 31, "No pack is given"),
        (["train", "--resume", "nowhere"], 41, "nowhere is no run"),
        (["submit", "tiny", "--storage", "s3://ray", "--address", "head:8265"], 10, "no address of a job server"),
        (["submit", "tiny", "--storage", "s3://ray", "--min-workers", "2"], 10, "least number of workers"),
        (["submit", "tiny", "--storage", "s3://ray", "--set", "trainer.devices=4"], 10, "trainer.devices is 4, but on the cluster it would be 1"),
    ],
)
def test_mistakes_have_exit_codes(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_PATH", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["ray", *arguments]) == code
    assert said in capsys.readouterr().err

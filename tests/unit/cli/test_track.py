from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scanvit.cli import main
from scanvit.core.config import Experiment, TrackingConfig
from scanvit.core.errors import StorageError, TrackingError
from scanvit.core.events import EventLog
from scanvit.core.loading import experiment_to_yaml
from scanvit.training import tracking


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of the runs a, b and c."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.yaml").write_text(experiment_to_yaml(Experiment()))
        EventLog(tmp_path / name).write("start")
    return tmp_path


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that a server got; it refuses one with a file ``refused``, which cannot be written where there is a file ``locked``."""
    names: list[str] = []

    class Shipper:
        uri, run_id, state = "http://tracking", "1", SimpleNamespace(refused=[])

        def __init__(self, run_dir: Path, settings: Any, *, uri: str | None = None) -> None:
            self.run_dir = run_dir

        def ship(self, *, alive: bool) -> None:
            if (self.run_dir / "refused").exists():
                raise TrackingError("The server does not answer.")
            if (self.run_dir / "locked").exists():
                raise StorageError(f"{self.run_dir} cannot be written.", hint="Choose another.")
            names.append(self.run_dir.name)

    monkeypatch.setattr(tracking, "Shipper", Shipper)
    return names


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("experiment.yaml", b"tracking: [", 10),
        ("experiment.yaml", b"\xff", 10),
        ("experiment.yaml", b"tracking: {x: 1}", 12),
        ("refused", b"", 70),
        ("locked", b"", 60),
    ],
    ids=["no YAML", "no text", "another version", "refused", "locked"],
)
def test_the_others_are_sent_and_the_first_error_is_the_end(
    runs: Path, sent: list[str], capsys: pytest.CaptureFixture[str], file: str, content: bytes, code: int
) -> None:
    (runs / "a" / file).write_bytes(content)
    (runs / "b" / "refused").touch()
    for given in ([runs], [runs / name for name in ("a", "b", "c")]):
        sent.clear()
        assert main(["track", "sync", *map(str, given)]) == code
        assert sent == ["c"]
    said = capsys.readouterr().err
    assert f"{runs / 'a'}: " in said
    assert "error: 2 of 3 runs were not sent.\nhint: " in said


def test_a_run_that_was_not_to_be_tracked_is_no_error_among_others(runs: Path, sent: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "experiment.yaml").write_text(experiment_to_yaml(Experiment(tracking=TrackingConfig(mlflow=False))))
    assert main(["track", "sync", str(runs)]) == 0
    assert sent == ["b", "c"]
    assert f"{runs / 'a'} was run with tracking.mlflow=false." in capsys.readouterr().err
    assert main(["track", "sync", str(runs / "a")]) == 10
    assert main(["track", "sync", str(runs / "a"), str(runs / "b")]) == 10, "asked for by its name"


def test_a_path_that_is_no_run_stops_no_other(runs: Path, sent: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track", "sync", str(runs / "typo"), str(runs / "a"), str(runs / "b")]) == 41
    assert sent == ["a", "b"]
    said = capsys.readouterr().err
    assert f"{runs / 'typo'}: {runs / 'typo'} is no run and holds none." in said
    assert "1 of 3 runs were not sent." in said
    assert main(["track", "sync", str(runs / "typo")]) == 41

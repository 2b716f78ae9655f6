from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scanvit.cli import main
from scanvit.core.config import Experiment, TrackingConfig
from scanvit.core.events import EventLog
from scanvit.core.loading import experiment_to_yaml
from scanvit.training.monitoring import exposition, find_runs, read_status, trials_of
from scanvit.training.run_folder import locked
from scanvit.training.tracking_state import TrackingState

SAMPLE = re.compile(r'[a-z_]+\{run="(?:[^"\\\n]|\\["\\n])*"(?:,gpu="\d+")?\} (?:-?\d\S*|NaN)')


def make_run(folder: Path, *, mlflow: bool = True) -> EventLog:
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(experiment_to_yaml(Experiment(tracking=TrackingConfig(mlflow=mlflow))))
    events = EventLog(folder)
    events.write("start")
    events.metrics({"train_loss": 0.5, "val_loss": 0.75, "images_per_s": 120.0}, epoch=3, step=30)
    events.metrics({"system/gpu_1_utilization_percentage": 88.0}, epoch=3, step=30)
    return events


def test_a_run_says_where_it_is(tmp_path: Path) -> None:
    events = make_run(tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert (status.phase, status.latest["epoch"]) == ("killed", 3)
    assert status.behind_bytes == events.path.stat().st_size
    assert 0 <= status.behind_s < 600
    with locked(tmp_path / "run"):
        assert read_status(tmp_path / "run").phase == "running"
    events.write("end", status="finished")
    assert read_status(tmp_path / "run").phase == "finished"
    events.write("resume")
    events.write("end", status="preempted")
    assert read_status(tmp_path / "run").phase == "preempted"
    size = events.path.stat().st_size
    TrackingState(run_key="k", offset=size, artifacts_offset=size).save(tmp_path / "run")
    assert (read_status(tmp_path / "run").behind_bytes, read_status(tmp_path / "run").behind_s) == (0, 0.0)


def test_half_a_line_is_passed_over_for_the_oldest_event_that_has_not_arrived(tmp_path: Path) -> None:
    events = make_run(tmp_path / "run")
    content = events.path.read_bytes().replace(b'"time"', b'"time", ', 1)
    events.path.write_bytes(re.sub(rb'"time": [\d.]+', b'"time": 1.0', content))
    assert read_status(tmp_path / "run").behind_s > 1e9


def of_another_version(run_dir: Path) -> Path:
    make_run(run_dir)
    (run_dir / "experiment.yaml").write_text("tracking: {of_a_later_version: 1}")
    return run_dir


def test_one_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a")
    broken = of_another_version(tmp_path / "b")
    make_run(tmp_path / "c")
    pages = [exposition(find_runs(tmp_path)) for _ in range(2)]
    assert all('run="a"' in page and 'run="c"' in page and 'run="b"' not in page for page in pages)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"{broken} is left out"], "once"
    assert main(["track", "status", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith(f"{broken}: cannot be read: ") and "of_a_later_version" in row for row in rows)
    assert main(["track", "status", "--json", str(tmp_path)]) == 0
    assert [json.loads(row)["phase"] for row in capsys.readouterr().out.splitlines()] == ["killed", "unreadable", "killed"]
    assert main(["track", "status", str(broken)]) == 12


def test_behind_a_search_stand_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = tmp_path / "search"
    make_run(search)
    for number in ("0000", "0001"):
        make_run(search / "trials" / number)
    (search / "trials" / "0001.log").touch()
    assert trials_of(search) == [search / "trials" / "0000", search / "trials" / "0001"]
    for given in (search, tmp_path):
        assert main(["track", "status", "--json", str(given)]) == 0
        assert [json.loads(row)["run"] for row in capsys.readouterr().out.splitlines()] == [str(search), *map(str, trials_of(search))]


def test_a_run_that_is_not_tracked_is_not_behind(tmp_path: Path) -> None:
    make_run(tmp_path / "run", mlflow=False)
    assert read_status(tmp_path / "run").behind_bytes == 0


def test_prometheus_gets_the_promised_names_whatever_a_run_is_called(tmp_path: Path) -> None:
    make_run(tmp_path / 'a "b" \\ c')
    make_run(tmp_path / "second")
    runs = find_runs(tmp_path)
    assert len(runs) == 2
    text = exposition(runs)
    lines = text.splitlines()
    assert text.endswith("\n")
    assert all(SAMPLE.fullmatch(line) for line in lines if not line.startswith("#"))
    names = {line.split("{")[0] for line in lines if not line.startswith("#")}
    assert names == {f"scanvit_{name}" for name in PROMISED}
    assert sum(line.startswith("# TYPE") for line in lines) == len(names), "one family a name"
    assert 'scanvit_val_loss{run="a \\"b\\" \\\\ c"} 0.75' in lines
    assert 'scanvit_gpu_utilization_percent{run="second",gpu="1"} 88.0' in lines


PROMISED = (
    "running",
    "images_per_second",
    "epoch",
    "train_loss",
    "val_loss",
    "tracking_behind_seconds",
    "tracking_behind_bytes",
    "gpu_utilization_percent",
)


@pytest.mark.parametrize("folder", ["", "nothing"])
def test_a_folder_without_runs_has_none(tmp_path: Path, folder: str) -> None:
    assert find_runs(tmp_path / folder) == []
    assert exposition([]) == ""

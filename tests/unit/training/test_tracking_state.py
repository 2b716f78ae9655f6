from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from scanvit.core.config import Experiment, TrackingConfig
from scanvit.core.errors import TrackingError
from scanvit.core.events import EventLog
from scanvit.training.run_folder import is_being_trained, locked, open_run
from scanvit.training.shipper import Shipper
from scanvit.training.shipping import ShippingProcess
from scanvit.training.tracking_state import TrackingState, bytes_behind, ensure_run_key, exclusive


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_key_is_made_once_and_a_given_one_holds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    key = ensure_run_key(run)
    assert ensure_run_key(run) == key
    assert ensure_run_key(run, run_key="other") == "other"
    assert ensure_run_key(run) == "other"
    assert TrackingState.load(run).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert not open_run(run, Experiment()), "a run may begin in a folder that has its key"


def test_no_password_reaches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:" + "p@ss@example.org:5000/mlflow")
    ensure_run_key(tmp_path)
    assert json.loads((tmp_path / "tracking.json").read_text())["uri"] == "https://example.org:5000/mlflow"


def test_a_relative_file_is_noted_as_the_one_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert Shipper(tmp_path / "run", TrackingConfig()).target == f"sqlite:///{tmp_path}/mlflow.db"
    ensure_run_key(tmp_path / "run")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Shipper(tmp_path / "run", TrackingConfig()).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_tracking_that_cannot_start_is_no_fault_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("scanvit.training.shipping.subprocess.Popen", refuse)
    shipping = ShippingProcess(tmp_path, TrackingConfig())
    shipping.start()
    shipping.stop()
    assert "scanvit track sync" in caplog.text
    assert not shipping.shipper().complete


def test_turning_to_another_server_keeps_the_key_and_starts_over(tmp_path: Path) -> None:
    state = TrackingState(run_key="k", uri="http://a", run_id="1", offset=7, artifacts_offset=7, status="FINISHED")
    state.aim("http://ann:" + "secret@a")
    assert state.run_id == "1", "the same server"
    state.aim("http://b")
    assert (state.run_key, state.run_id, state.offset, state.status) == ("k", None, 0, None)


def test_a_record_that_became_shorter_is_read_from_its_start(tmp_path: Path) -> None:
    EventLog(tmp_path).write("start")
    TrackingState(run_key="k", run_id="1", offset=10**6, artifacts_offset=10).save(tmp_path)
    state = TrackingState.load(tmp_path)
    assert (state.run_key, state.run_id, state.offset, state.artifacts_offset) == ("k", "1", 0, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_key": "k", "of a later version": 1}', '{"offset": "7"}'])
def test_a_damaged_or_foreign_file_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "tracking.json").write_text(content)
    assert TrackingState.load(tmp_path).run_key


def test_half_a_line_is_not_behind(tmp_path: Path) -> None:
    EventLog(tmp_path).write("start")
    whole = (tmp_path / "events.jsonl").stat().st_size
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": 1')
    assert bytes_behind(tmp_path, TrackingState()) == whole
    assert bytes_behind(tmp_path, TrackingState(offset=whole, artifacts_offset=whole)) == 0
    assert bytes_behind(tmp_path, TrackingState(offset=whole)) == whole, "its artifacts are missing"


def hold(path: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with locked(path), exclusive(path):
        ready.set()
        done.wait(30)
        os._exit(1)  # as one that is killed


def test_one_process_sends_and_one_trains_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, done))
    assert not is_being_trained(tmp_path)
    process.start()
    assert ready.wait(60)
    assert is_being_trained(tmp_path)
    with pytest.raises(TrackingError, match="Another process"), exclusive(tmp_path, wait_s=0.1):
        pass
    done.set()
    process.join(30)
    assert not is_being_trained(tmp_path)
    with exclusive(tmp_path, wait_s=0.1):
        pass

"""Shipping against a real MLflow server behind a proxy that loses, cuts, delays and refuses: everything arrives, once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cluster_harness import wait_for
from tests.integration.conftest import SOURCES
from tests.mlflow_server import MlflowServer, Proxy
from tests.ports import free_port

from scanvit.core.config import Experiment, TrackingConfig
from scanvit.core.errors import TrackingError
from scanvit.core.events import EventLog
from scanvit.core.loading import experiment_to_dict, experiment_to_yaml
from scanvit.storage.mlflow_client import connect
from scanvit.training.run_folder import locked
from scanvit.training.shipper import Shipper
from scanvit.training.shipping import ShippingProcess
from scanvit.training.tracking import sync
from scanvit.training.tracking_state import TrackingState, ensure_run_key

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

DATASET = {
    "name": "mine",
    "path": "/packs/mine",
    "fingerprint": "0123456789abcdef" * 4,
    "shape": [1, 16, 16],
    "counts": {"train": {"a": 3, "b": 4}, "val": {"a": 1, "b": 1}},
    "patients": {"train": 7, "val": 2},
    "audit": {"G1": "pass", "G6": "acknowledged"},
    "audit_verdict": "acknowledged",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[Proxy]:
    proxy = Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


class Run:
    """A run folder with a record, in an MLflow experiment of its own."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder / "run"
        self.dir.mkdir()
        self.settings = TrackingConfig(experiment_name=str(folder.name))
        experiment = replace(Experiment(name="made"), tracking=self.settings)
        (self.dir / "experiment.yaml").write_text(experiment_to_yaml(experiment))
        (self.dir / "checkpoint.pth").write_bytes(os.urandom(300_000))
        self.events = EventLog(self.dir)
        self.events.write("start", experiment=experiment_to_dict(experiment))
        self.events.write("tags", **{"scanvit.audit": "acknowledged"})
        self.events.write("dataset", **DATASET)
        self.events.write("artifact", path="experiment.yaml")

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.events.metrics({"train_loss_step": 1 / (1 + step), "lr": 1e-3}, epoch=0, step=step)

    def end(self, status: str = "finished") -> None:
        self.events.metrics({"val_loss": 0.5, "val_precision/COVID+": float("nan")}, epoch=1, step=100)
        self.events.write("artifact", path="checkpoint.pth")
        self.events.write("end", status=status)

    def ship(self, uri: str, *, alive: bool = False, tries: int = 1) -> Shipper:
        """As the process beside a training does it: again and again, until it works."""
        shipper = Shipper(self.dir, self.settings, uri=uri)
        for left in reversed(range(tries)):
            try:
                shipper.ship(alive=alive)
                return shipper
            except Exception:
                if not left:
                    raise
        raise AssertionError

    def in_mlflow(self, uri: str) -> Any:
        """The one run of the experiment."""
        client = connect(uri)
        runs = client.search_runs([client.get_experiment_by_name(self.settings.experiment_name).experiment_id])
        assert len(runs) == 1, "no ghost run"
        return runs[0]

    def history(self, uri: str, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in connect(uri).get_metric_history(self.in_mlflow(uri).info.run_id, name)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def assert_complete(run: Run, uri: str, *, steps: int, status: str = "FINISHED") -> None:
    found = run.in_mlflow(uri)
    assert found.info.status == status
    assert sorted(run.history(uri, "train_loss_step")) == [(step, pytest.approx(1 / (1 + step))) for step in range(steps)]
    assert found.data.params["optimizer.name"] == "adam"
    assert found.data.tags["scanvit.audit"] == "acknowledged"
    client = connect(uri)
    assert {(file.path, file.file_size) for file in client.list_artifacts(found.info.run_id)} >= {("checkpoint.pth", 300_000)}
    assert len(found.inputs.dataset_inputs) == 1


FAULTS: dict[str, Callable[[Proxy], None]] = {
    "the answer to create_run is lost": lambda proxy: proxy.fail("runs/create", "lose"),
    "the answer to create_experiment is cut": lambda proxy: proxy.fail("experiments/create", "cut"),
    "answers to log_batch are lost": lambda proxy: proxy.fail("runs/log-batch", "lose", times=3),
    "answers to log_batch are cut": lambda proxy: proxy.fail("runs/log-batch", "cut", times=3),
    "it answers 500": lambda proxy: proxy.fail("", "500", times=4),
    "it answers 503 to log_batch": lambda proxy: proxy.fail("runs/log-batch", "503", times=3),
    "it is slower than the time-out": lambda proxy: proxy.fail("runs/log-batch", "delay", times=1, delay_s=7),
    "half of an artifact gets through": lambda proxy: proxy.fail("checkpoint.pth", "half", times=2),
    "the answer to an artifact is lost": lambda proxy: proxy.fail("checkpoint.pth", "lose", times=2),
    "the answer to the data set is lost": lambda proxy: proxy.fail("runs/log-inputs", "lose", times=2),
    "the answer to the end is lost": lambda proxy: proxy.fail("runs/update", "lose"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_arrives_once_although(fault: str, run: Run, proxy: Proxy, mlflow_server: MlflowServer) -> None:
    run.steps(0, 60)
    run.end()
    FAULTS[fault](proxy)
    assert run.ship(proxy.uri, tries=6).complete
    assert all(fault.times == 0 for fault in proxy.faults), "the fault was met"
    assert_complete(run, mlflow_server.uri, steps=60)
    proxy.seen.clear()
    run.ship(proxy.uri)
    assert not [line for line in proxy.seen if line.startswith(("POST", "PUT", "PATCH")) and not line.endswith("search")], "nothing is sent again"


def test_a_slow_first_create_that_makes_a_second_run_after_all_leaves_one(run: Run, mlflow_server: MlflowServer) -> None:
    run.steps(0, 5)
    run.ship(mlflow_server.uri, alive=True)
    state = TrackingState.load(run.dir)
    client = connect(mlflow_server.uri)
    client.create_run(run.in_mlflow(mlflow_server.uri).info.experiment_id, tags={"scanvit.run_key": state.run_key})
    run.end()
    run.ship(mlflow_server.uri)
    assert run.in_mlflow(mlflow_server.uri).info.run_id == state.run_id
    assert_complete(run, mlflow_server.uri, steps=5)


def test_steps_made_again_after_a_resume_are_there_once(run: Run, mlflow_server: MlflowServer) -> None:
    run.steps(0, 30)
    run.ship(mlflow_server.uri)
    assert run.in_mlflow(mlflow_server.uri).info.status == "KILLED", "nobody trains it, and it wrote no end"
    run.events.write("resume", checkpoint="last.ckpt")
    run.steps(20, 40)
    run.ship(mlflow_server.uri, alive=True)
    assert run.in_mlflow(mlflow_server.uri).info.status == "RUNNING"
    run.end("failed")
    run.ship(mlflow_server.uri)
    assert_complete(run, mlflow_server.uri, steps=40, status="FAILED")
    run.events.write("resume", checkpoint="last.ckpt")
    run.end("preempted")
    run.ship(mlflow_server.uri)
    assert_complete(run, mlflow_server.uri, steps=40, status="KILLED")


def test_the_step_at_which_a_run_was_killed_is_there_once_though_its_times_differ(run: Run, mlflow_server: MlflowServer) -> None:
    """Killed between the record of an epoch and its checkpoint, a run makes the epoch again, and not at the same speed."""
    for images_per_s in (320.0, 290.0):
        run.events.metrics({"val_loss": 0.5, "images_per_s": images_per_s}, epoch=1, step=30)
        run.ship(mlflow_server.uri)
        run.events.write("resume", checkpoint="last.ckpt")
    assert run.history(mlflow_server.uri, "images_per_s") == [(30, 320.0)]
    assert run.history(mlflow_server.uri, "val_loss") == [(30, 0.5)]


@pytest.mark.parametrize("status", ["finished", None], ids=["finished", "killed"])
def test_a_second_evaluation_with_other_figures_is_the_one_shown(run: Run, mlflow_server: MlflowServer, status: str | None) -> None:
    run.steps(0, 10)
    if status:
        run.end(status)
    for accuracy in (0.75, 0.75, 0.8):
        run.events.metrics({"test_accuracy": accuracy}, epoch=1, step=9)
        run.ship(mlflow_server.uri)
    assert run.in_mlflow(mlflow_server.uri).data.metrics["test_accuracy"] == 0.8
    assert sorted(run.history(mlflow_server.uri, "test_accuracy")) == [(9, 0.75), (9, 0.8)]


def test_a_run_made_anew_on_another_machine_with_its_key_stays_one_run(run: Run, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    key = ensure_run_key(run.dir, uri=mlflow_server.uri)
    run.steps(0, 30)
    run.ship(mlflow_server.uri, alive=True)
    (tmp_path / "other").mkdir()
    other = Run(tmp_path / "other")
    other.settings = run.settings
    assert ensure_run_key(other.dir, uri=mlflow_server.uri, run_key=key) == key
    other.steps(20, 50)  # the record of the lost machine went with it; this one begins at the checkpoint
    other.end()
    other.ship(mlflow_server.uri)
    run.ship(mlflow_server.uri)  # what was left of the first machine comes late
    assert_complete(other, mlflow_server.uri, steps=50)


def test_another_server_gets_all_of_it_and_the_first_one_gets_nothing_twice(run: Run, mlflow_server: MlflowServer, empty_store: Path) -> None:
    run.steps(0, 10)
    run.end()
    run.ship(mlflow_server.uri)
    local = f"sqlite:///{empty_store}"
    sync(run.dir, uri=local)
    assert_complete(run, local, steps=10)
    sync(run.dir, uri=mlflow_server.uri)
    assert_complete(run, mlflow_server.uri, steps=10)


def test_a_database_that_was_lost_gets_all_of_it_again(run: Run, mlflow_server: MlflowServer, empty_store: Path) -> None:
    run.steps(0, 10)
    run.ship(mlflow_server.uri, alive=True)
    first = run.in_mlflow(mlflow_server.uri).info.run_id
    state = TrackingState.load(run.dir)  # as if an empty database had come up where the first one was
    state.uri = f"sqlite:///{empty_store}"
    state.save(run.dir)
    run.end()
    sync(run.dir)
    assert_complete(run, state.uri, steps=10)
    assert TrackingState.load(run.dir).run_id != first


def test_an_event_that_the_server_will_never_take_holds_nothing_up(run: Run, mlflow_server: MlflowServer) -> None:
    run.steps(0, 10)
    run.events.metrics({"n" * 300: 1.0, "val_recall/a//b": 0.5, "val_recall/..": 0.25}, epoch=0, step=10)
    run.events.write("start", experiment={"optimizer": {"name": "another"}})  # parameters cannot change
    run.events.write("artifact", path="../secret.txt")
    (run.dir.parent / "secret.txt").write_text("not part of the run")
    run.end()
    shipper = run.ship(mlflow_server.uri)
    assert_complete(run, mlflow_server.uri, steps=10)
    assert len(shipper.state.refused) == 2
    assert "start at step 0" in shipper.state.refused[0]
    assert "outside the run" in shipper.state.refused[1]
    found = run.in_mlflow(mlflow_server.uri)
    assert sum(key.startswith("val_recall/") for key in found.data.metrics) == 2
    assert len(max(found.data.metrics, key=len)) == 250


def test_values_that_json_does_not_know_arrive_as_nan_and_once(run: Run, mlflow_server: MlflowServer) -> None:
    run.end()
    for _ in range(2):
        run.ship(mlflow_server.uri)
        state = TrackingState.load(run.dir)
        state.restart()
        state.save(run.dir)
    key = next(key for key in run.in_mlflow(mlflow_server.uri).data.metrics if key.startswith("val_precision/COVID_"))
    (point,) = run.history(mlflow_server.uri, key)
    assert point[0] == 100
    assert math.isnan(point[1])


def test_the_pack_is_the_data_set_of_the_run(run: Run, mlflow_server: MlflowServer) -> None:
    run.end()
    run.ship(mlflow_server.uri)
    (given,) = run.in_mlflow(mlflow_server.uri).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("mine", DATASET["fingerprint"][:36])
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training", "scanvit.audit": "acknowledged"}
    profile = json.loads(given.dataset.profile)
    assert profile["fingerprint"] == DATASET["fingerprint"]
    assert profile["num_rows"] == 9
    assert profile["audit_gates"] == "pass: G1; acknowledged: G6"
    assert (profile["classes"], profile["train"], profile["val"]) == (2, "7 images of 7 patients", "2 images of 2 patients")


def test_a_run_deleted_there_is_left_alone_and_said(run: Run, mlflow_server: MlflowServer) -> None:
    run.steps(0, 5)
    run.ship(mlflow_server.uri, alive=True)
    run_id = run.in_mlflow(mlflow_server.uri).info.run_id
    connect(mlflow_server.uri).delete_run(run_id)
    run.end()
    with pytest.raises(TrackingError, match=f"{run_id} was deleted"):
        sync(run.dir, uri=mlflow_server.uri)
    connect(mlflow_server.uri).restore_run(run_id)
    sync(run.dir, uri=mlflow_server.uri)
    assert_complete(run, mlflow_server.uri, steps=5)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("401", "MLFLOW_TRACKING_USERNAME"), ("403", "may not write there"), ("500", "answers with errors"), ("404", "no MLflow server")],
)
def test_a_server_that_refuses_is_a_sentence_without_the_password(code: str, sentence: str, run: Run, proxy: Proxy) -> None:
    run.end()
    proxy.fail("", code, times=100)
    with pytest.raises(TrackingError, match=sentence) as caught:
        sync(run.dir, uri=proxy.uri.replace("//", "//ann:s3cret@"))
    assert "s3cret" not in str(caught.value) + str(caught.value.hint) + (run.dir / "tracking.json").read_text()
    assert json.loads((run.dir / "tracking.json").read_text())["uri"] == proxy.uri


def test_another_program_on_the_port_takes_nothing(run: Run, file_server: Any) -> None:
    run.end()
    with pytest.raises(TrackingError, match="no MLflow server"):
        sync(run.dir, uri=file_server.url(""))
    assert TrackingState.load(run.dir).offset == 0


def test_a_local_store_whose_making_was_broken_off_is_made_anew(tmp_path: Path) -> None:
    """MLflow itself would answer "table ... already exists" from then on."""
    store = tmp_path / "mlflow.db"
    code = f"from scanvit.storage.mlflow_client import make_local_store; make_local_store('sqlite:///{store}')"
    maker = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCES)})
    while not any(file.stat().st_size for file in tmp_path.glob(".mlflow.db.*.tmp")) and maker.poll() is None:
        time.sleep(0.005)
    maker.kill()
    assert maker.wait() == -signal.SIGKILL
    assert not store.exists()
    assert connect(f"sqlite:///{store}").search_experiments()
    assert store.is_file()


def _schedulers(pid: int) -> set[int]:
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
            found.add(os.sched_getscheduler(int(thread)))
    return found


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has a class of processes that run where nothing else does")
@pytest.mark.parametrize("end", ["the training waits for it", "the training was killed"])
def test_it_gives_way_to_the_training_and_gets_on_once_that_is_gone(end: str, run: Run, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is closed while it imports MLflow, or finds no server: nobody must wait for a process that gives way to everything."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    shipping = ShippingProcess(run.dir, replace(run.settings, drain_timeout_s=500))
    with locked(run.dir):
        shipping.start()
        process = shipping._process
        assert process is not None
        assert process.stdin is not None
        wait_for(lambda: os.sched_getscheduler(process.pid) == os.SCHED_IDLE, "it gives way", every_s=0.01)
        run.steps(0, 20)
        run.end()
    with ThreadPoolExecutor(1) as waiting:
        stopped = waiting.submit(shipping.stop if end == "the training waits for it" else process.stdin.close)
        wait_for(lambda: _schedulers(process.pid) == {os.SCHED_OTHER}, "it gets on", every_s=0.01)
        back = Proxy(mlflow_server.port, port)
        try:
            stopped.result()
            assert process.wait() == 0
        finally:
            back.close()
    assert_complete(run, mlflow_server.uri, steps=20)


def test_one_that_was_ended_is_started_again_before_the_run_ends(run: Run, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    shipping = ShippingProcess(run.dir, replace(run.settings, drain_timeout_s=500))
    shipping.start()
    assert shipping._process is not None
    shipping._process.kill()
    shipping._process.wait()
    run.steps(0, 5)
    run.end()
    shipping.stop()
    assert shipping.shipper().complete
    assert_complete(run, mlflow_server.uri, steps=5)


def test_a_run_folder_that_is_taken_away_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.yaml").write_text(experiment_to_yaml(Experiment()))
    EventLog(run).write("start", experiment={}, fingerprint="", world_size=1)
    shipping = ShippingProcess(run, TrackingConfig())
    shipping.start()
    deadline = time.monotonic() + 60
    while not (run / "tracking.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.rename(tmp_path / "elsewhere")
    shipping.stop()
    assert not run.exists()
    assert "Training goes on" not in capfd.readouterr().err, "it does not"

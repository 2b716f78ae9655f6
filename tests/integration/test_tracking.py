"""Tracking through the command line against real MLflow: a local store, and a server that is away, paused or killed when it is needed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.integration.cluster_harness import wait_for as wait_until
from tests.integration.conftest import Scanvit
from tests.mlflow_server import MlflowServer, Proxy
from tests.ports import free_port

from scanvit.core.events import read_events
from scanvit.storage.mlflow_client import connect
from scanvit.training.mlflow_entities import metric_key
from scanvit.training.shipping import _stop_yielding
from scanvit.training.tracking_state import TrackingState

# MLflow's store, opened here to look inside, calls what its own dependencies deprecate.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

USER = "ann:" + "s3cret"
SETTINGS = (
    "model.stem_widths=[8,8]",
    "model.depth=1",
    "model.dim=16",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "tracking.system_metrics_every_s=1",
    "tracking.drain_timeout_s=500",
)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of an MLflow experiment for this test alone."""
    return str(request.node.name)


def arguments(pack: Path, run_dir: Path, *settings: str) -> list[str]:
    pairs = [x for s in [*SETTINGS, *settings] for x in ("--set", s)]
    return ["train", "tiny", "--pack", str(pack), "--run-dir", str(run_dir), *pairs]


def only_run(uri: str, experiment: str) -> Any:
    client = connect(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 1, "one run, no ghosts"
    return runs[0]


def assert_complete(uri: str, run_dir: Path, experiment: str, *, status: str = "FINISHED") -> None:
    """Every metric of events.jsonl is there once, with its step and its first value; files, parameters and the terminal state are right."""
    run = only_run(uri, experiment)
    assert run.info.status == status
    written: dict[str, dict[int, float]] = {}
    for event in read_events(run_dir):
        if event["kind"] == "metrics":
            for key, value in event["values"].items():
                if not key.startswith("system/"):
                    written.setdefault(key, {}).setdefault(event["step"], math.nan if value is None else value)
    assert {"train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "val_precision/0", "val_recall/2"} <= written.keys()
    client = connect(uri)
    for key, points in written.items():
        arrived = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric_key(key)))
        assert [step for step, _ in arrived] == sorted(points), key
        assert [value for _, value in arrived] == pytest.approx([points[step] for step in sorted(points)], nan_ok=True), key
    artifacts = {file.path: file.file_size for folder in (None, "checkpoints") for file in client.list_artifacts(run.info.run_id, folder)}
    for file in ("experiment.yaml", "environment.json", "gpu-info.txt", "checkpoint.pth", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert artifacts[file] == (run_dir / file).stat().st_size
    assert run.data.params["optimizer.name"] == "adamw"
    assert run.data.tags["scanvit.fingerprint"] == run.data.tags["scanvit.fingerprint"]
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.digest == run.data.tags["scanvit.fingerprint"][:36]
    assert {tag.key: tag.value for tag in given.tags}["scanvit.audit"] == run.data.tags["scanvit.audit"]
    assert any(key.startswith("system/cpu") for key in run.data.metrics)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    """Of a run. What ships it runs where a core has nothing else to do: beside other tests that could be never, so here it need not give way."""

    def there() -> bool:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                _stop_yielding(child.pid)
        return bool(condition())

    wait_until(there, "what the run is waited for", timeout_s=600, every_s=0.1)


def said(process: subprocess.Popen[str]) -> str:
    """On its stderr since the last call. ``communicate`` gives the rest."""
    assert process.stderr is not None
    is_ready = select.select([process.stderr], [], [], 0)[0]
    return os.read(process.stderr.fileno(), 1 << 16).decode() if is_ready else ""


def test_a_local_store_holds_the_run_and_its_checkpoint_downloads_and_loads(scanvit: Scanvit, small_pack: Path, empty_store: Path) -> None:
    runs = scanvit.folder / "runs"
    runs.mkdir()
    empty_store.rename(runs / "mlflow.db")
    assert "scanvit ui" in scanvit(*arguments(small_pack, runs / "first"))
    uri = f"sqlite:///{runs}/mlflow.db"
    assert_complete(uri, runs / "first", "scanvit")
    assert not (scanvit.folder / "mlruns").exists(), "nothing beside the runs"
    assert "finished, all sent" in scanvit("track", "status", "runs")
    # As users of the tracking server fetch a checkpoint.
    run_id = only_run(uri, "scanvit").info.run_id
    command = ["artifacts", "download", "--artifact-uri", f"runs:/{run_id}/checkpoint.pth", "--dst-path", "./model_ckpt"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    subprocess.run([sys.executable, "-m", "mlflow", *command], env=environment, cwd=scanvit.folder, check=True, capture_output=True)
    content = torch.load(scanvit.folder / "model_ckpt" / "checkpoint.pth")
    assert content["class_names"] == ["0", "1", "2"]
    assert content["state_dict"]


def test_a_server_that_is_away_for_training_and_evaluation_gets_everything_later(
    scanvit: Scanvit, small_pack: Path, mlflow_server: MlflowServer, name: str
) -> None:
    port, run_dir = free_port(), scanvit.folder / "runs" / "first"
    away = {"MLFLOW_TRACKING_URI": f"http://{USER}@127.0.0.1:{port}"}
    settings = ("tracking.drain_timeout_s=1", f"tracking.experiment_name={name}")
    out = scanvit(*arguments(small_pack, run_dir, *settings), **away)
    assert f"scanvit track sync {run_dir}" in out
    assert "scanvit track sync" in scanvit("evaluate", run_dir, "--draws", "0", **away)
    out = scanvit("track", "sync", run_dir, code=70, **away)
    assert "connection refused" in out, "still away: a sentence, nothing lost"
    assert "Nothing is lost" in out
    status = json.loads(scanvit("track", "status", run_dir, "--json"))
    assert status["behind_bytes"] > 1000
    assert status["behind_s"] > 0
    assert "s3cret" not in "".join(file.read_text(errors="replace") for file in run_dir.rglob("*") if file.suffix in (".json", ".jsonl", ".yaml"))
    back = Proxy(mlflow_server.port, port)
    for _ in range(2):
        assert "s3cret" not in scanvit("track", "sync", scanvit.folder / "runs", **away)
    back.close()
    assert_complete(mlflow_server.uri, run_dir, name)
    run = only_run(mlflow_server.uri, name)
    assert run.data.metrics["test_accuracy"] == json.loads((run_dir / "scores-test.json").read_text())["overall"]["accuracy"]["value"]
    files = {file.path for file in connect(mlflow_server.uri).list_artifacts(run.info.run_id)}
    assert {"report.html", "scores-test.json", "predictions-test.parquet", "model-card.md", "data-card.md"} <= files
    assert json.loads(scanvit("track", "status", run_dir, "--json"))["behind_bytes"] == 0


ENDLESS = ("trainer.max_epochs=100000", "trainer.per_device_batch_size=4", "trainer.log_every_n_steps=100")


def test_a_server_that_hangs_and_dies_in_the_middle_and_returns_has_it_all(scanvit: Scanvit, small_pack: Path, mlflow_server: MlflowServer, name: str) -> None:
    run_dir = scanvit.folder / "runs" / "first"
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    process = scanvit.start(*arguments(small_pack, run_dir, *ENDLESS, f"tracking.experiment_name={name}"), **environment)
    try:
        wait_for(lambda: shipped(run_dir) and (run_dir / "checkpoint.pth").exists(), process)
        mlflow_server.signal(signal.SIGSTOP)
        before = (run_dir / "events.jsonl").stat().st_size
        wait_for(lambda: (run_dir / "events.jsonl").stat().st_size > before + 5000, process)  # it trains on
        wait_for(lambda: TrackingState.load(run_dir).error, process)
        assert "no answer within 2 s" in scanvit("track", "status", run_dir)
        heard: list[str] = []
        wait_for(lambda: heard.append(said(process)) or "does not work: " in "".join(heard), process)
    finally:
        mlflow_server.kill()
        mlflow_server.start()
    wait_for(lambda: TrackingState.load(run_dir).error is None, process)
    process.terminate()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, out + err
    assert "Training goes on" in "".join(heard) + err
    assert "answers again" in err
    assert_complete(mlflow_server.uri, run_dir, name, status="KILLED")


def test_a_killed_run_is_killed_there_and_goes_on_as_the_same_run(scanvit: Scanvit, small_pack: Path, mlflow_server: MlflowServer, name: str) -> None:
    run_dir = scanvit.folder / "runs" / "first"
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    process = scanvit.start(*arguments(small_pack, run_dir, *ENDLESS, f"tracking.experiment_name={name}"), **environment)
    wait_for(lambda: shipped(run_dir) and (run_dir / "checkpoint.pth").exists(), process)
    shipping = psutil.Process(process.pid).children()
    process.kill()
    assert psutil.wait_procs(shipping, timeout=300)[1] == []
    killed = only_run(mlflow_server.uri, name)
    assert killed.info.status == "KILLED"
    assert "killed, all sent" in scanvit("track", "status", run_dir)
    process = scanvit.start("train", "--resume", str(run_dir), **environment)
    wait_for(lambda: only_run(mlflow_server.uri, name).info.status == "RUNNING", process)
    sent = shipped(run_dir)
    wait_for(lambda: shipped(run_dir) > sent, process)
    process.terminate()
    process.communicate(timeout=600)
    assert process.returncode == 75
    assert_complete(mlflow_server.uri, run_dir, name, status="KILLED")
    assert only_run(mlflow_server.uri, name).info.run_id == killed.info.run_id


def shipped(run_dir: Path) -> int:
    return TrackingState.load(run_dir).offset if run_dir.exists() else 0


def test_the_pages_and_the_metrics_open_on_a_folder_of_runs_and_end_without_leaving_a_process(scanvit: Scanvit, empty_store: Path) -> None:
    run_dir = scanvit.folder / "runs" / "first"
    run_dir.mkdir(parents=True)
    empty_store.rename(run_dir.parent / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"Port {port} is taken" in scanvit("ui", "runs", "--port", port, code=70)
        assert "cannot be listened on" in scanvit("track", "serve-metrics", "runs", "--port", port, code=70)
    (run_dir / "experiment.yaml").write_text("name: tiny\n")
    (run_dir / "events.jsonl").write_text('{"time": 1.0, "kind": "metrics", "epoch": 3, "step": 9, "values": {"val_loss": 0.25}}\n')
    pages, metrics = scanvit.start("ui", "runs", "--port", port), scanvit.start("track", "serve-metrics", "runs", "--port", str(free_port()))
    assert metrics.stdout is not None
    address = metrics.stdout.readline().split(" ")[0]
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    assert 'scanvit_val_loss{run="first"} 0.25\n' in text
    assert 'scanvit_tracking_behind_bytes{run="first"} 8' in text

    def opened() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            return b"MLflow" in page.read()
        return False

    wait_for(opened, pages)
    children = psutil.Process(pages.pid).children(recursive=True)
    for process in (pages, metrics):
        process.send_signal(signal.SIGTERM if process is pages else signal.SIGINT)
        process.communicate(timeout=300)
    assert pages.returncode == 0
    assert psutil.wait_procs(children, timeout=60)[1] == []

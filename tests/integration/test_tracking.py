"""Tracking against real MLflow: a local SQLite store, and a server that is away when it is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from tests.integration.conftest import Scanvit

from scanvit.core.events import metric_history

# MLflow's store, opened here to look inside, calls what its own dependencies deprecate.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SETTINGS = (
    "model.stem_widths=[8,8]",
    "model.depth=1",
    "model.dim=16",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "tracking.system_metrics_every_s=1",
)


def train(scanvit: Scanvit, pack: Path, *settings: str, **environment: str) -> str:
    pairs = [x for s in [*SETTINGS, *settings] for x in ("--set", s)]
    return scanvit("train", "tiny", "--pack", pack, "--run-dir", scanvit.folder / "runs" / "first", *pairs, **environment)


def client_of(uri: str):
    import mlflow

    return mlflow.MlflowClient(uri)


def only_run(uri: str):
    client = client_of(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1, "one run, no ghosts"
    return client, runs[0]


def assert_complete(uri: str, run_dir: Path) -> None:
    """Every metric of events.jsonl is there once, with its step and value; the terminal state is right."""
    client, run = only_run(uri)
    assert run.info.status == "FINISHED"
    history = {k: v for k, v in metric_history(run_dir).items() if not k.startswith("system/")}
    assert {"train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "val_precision/0", "val_recall/2"} <= history.keys()
    for name, points in history.items():
        arrived = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert sorted(arrived) == [(step, pytest.approx(value)) for _, step, value in points], name
    artifacts = {file.path for folder in (None, "checkpoints") for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"experiment.yaml", "environment.json", "gpu-info.txt", "checkpoint.pth", "checkpoints/last.ckpt"} <= artifacts
    assert run.data.params["optimizer.name"] == "adamw"
    assert run.data.tags["scanvit.fingerprint"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Starts an MLflow server on one port, as often as it is called."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    running: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(tmp_path / "server.log", "ab") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                return uri
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError((tmp_path / "server.log").read_text())

    start.uri = uri  # type: ignore[attr-defined]
    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_local_store_holds_the_run_and_its_checkpoint_downloads_and_loads(scanvit: Scanvit, small_pack: Path) -> None:
    out = train(scanvit, small_pack)
    assert "scanvit ui" in out
    uri = f"sqlite:///{scanvit.folder}/runs/mlflow.db"
    assert_complete(uri, scanvit.folder / "runs" / "first")
    _, run = only_run(uri)
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    assert not (scanvit.folder / "mlruns").exists(), "nothing beside the runs"
    # As users of the tracking server fetch a checkpoint.
    command = ["artifacts", "download", "--artifact-uri", f"runs:/{run.info.run_id}/checkpoint.pth", "--dst-path", str(scanvit.folder / "model_ckpt")]
    subprocess.run([sys.executable, "-m", "mlflow", *command], env=os.environ | {"MLFLOW_TRACKING_URI": uri}, check=True, capture_output=True)
    content = torch.load(scanvit.folder / "model_ckpt" / "checkpoint.pth", weights_only=True)
    assert content["class_names"] == ["0", "1", "2"]
    assert content["state_dict"]


def test_a_server_that_is_away_for_the_whole_run_gets_everything_later(scanvit: Scanvit, small_pack: Path, server: Callable[[], str]) -> None:
    uri = server.uri  # type: ignore[attr-defined]
    out = train(scanvit, small_pack, "tracking.drain_timeout_s=1", MLFLOW_TRACKING_URI=uri)
    run_dir = scanvit.folder / "runs" / "first"
    assert f"scanvit track sync {run_dir}" in out
    assert "scanvit track sync" in scanvit("track", "sync", run_dir, code=70), "still away: a sentence, nothing lost"
    server()
    for _ in range(2):
        scanvit("track", "sync", run_dir)
    assert_complete(uri, run_dir)


def test_a_server_that_dies_in_the_middle_and_returns_has_it_all(scanvit: Scanvit, small_pack: Path, server: Callable[[], str]) -> None:
    uri = server()
    run_dir = scanvit.folder / "runs" / "first"
    pairs = [x for s in [*SETTINGS, "trainer.max_epochs=40", "tracking.drain_timeout_s=60"] for x in ("--set", s)]
    process = scanvit.start("train", "tiny", "--pack", small_pack, "--run-dir", run_dir, *pairs, MLFLOW_TRACKING_URI=uri)
    while process.poll() is None and not (run_dir / "checkpoint.pth").exists():
        time.sleep(0.1)
    subprocess.run(["pkill", "-9", "-f", f"mlflow.*{uri.rsplit(':', 1)[1]}"], check=False)
    time.sleep(2)
    server()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert_complete(uri, run_dir)


def test_the_pages_open_on_a_folder_of_runs_and_end_without_leaving_a_process(scanvit: Scanvit, small_pack: Path) -> None:
    train(scanvit, small_pack)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.listen()
        assert f"Port {port} is taken" in scanvit("ui", "runs", "--port", port, code=70)
    process = scanvit.start("ui", "runs", "--port", port)
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as page:
                assert b"MLflow" in page.read()
            break
        except OSError:
            time.sleep(0.2)
    else:
        raise AssertionError("the pages did not open")
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []

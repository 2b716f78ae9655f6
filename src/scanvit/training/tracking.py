"""The copy of a run in MLflow. events.jsonl is the truth; a process beside the training (``shipping``) or ``scanvit track sync`` copies it.

Shipping reads whole lines from where it last got to (``tracking.json``), sends them, and then moves on: a line is sent again after a
failure, never skipped. Sending twice does no harm, because MLflow keeps one value for a (key, step, timestamp, value).
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import TrackingConfig
from ..core.errors import ConfigError, RunMissingError, TrackingError
from ..core.events import FILE_NAME, EventLog, parse_event
from ..core.loading import flatten, load_experiment
from ..storage.atomic import write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
_BATCH = 500


def default_tracking_uri(run_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file beside the run folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(run_dir.resolve().parent)


def local_tracking_uri(runs: Path) -> str:
    """The embedded tracking store of a folder of runs."""
    return f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def describe_place(uri: str) -> str:
    """Where to look at tracked runs, as a sentence's end."""
    if uri.startswith("sqlite:///"):
        folder = uri.removeprefix("sqlite:///").rpartition("/")[0]
        return f"a local MLflow: scanvit ui {min(os.path.relpath(folder), folder, key=len)}"
    return re.sub(r"//[^/@]*@", "//", uri)  # without a password


class Shipper:
    """Sends a run's events to MLflow, from where the last one stopped."""

    def __init__(self, run_dir: Path, settings: TrackingConfig, *, uri: str | None = None) -> None:
        self.run_dir, self.settings = run_dir, settings
        self.state_file = run_dir / "tracking.json"
        self.state: dict[str, Any] = {"uri": None, "run_key": None, "run_id": None, "offset": 0}
        if self.state_file.is_file():
            self.state |= json.loads(self.state_file.read_text(encoding="utf-8"))
        # A run stays with the server that it began on, unless told otherwise.
        wanted = uri or os.environ.get("MLFLOW_TRACKING_URI") or self.state["uri"] or default_tracking_uri(run_dir)
        if wanted != self.state["uri"]:
            self.state |= {"uri": wanted, "run_key": uuid.uuid4().hex, "run_id": None, "offset": 0}
        self._client: MlflowClient | None = None

    @property
    def uri(self) -> str:
        return str(self.state["uri"])

    @property
    def behind(self) -> int:
        """Bytes of events.jsonl that have not been shipped."""
        path = self.run_dir / FILE_NAME
        return path.stat().st_size - int(self.state["offset"]) if path.is_file() else 0

    def terminate(self, status: str) -> None:
        """Say how the run ended where no event of its own could: its process was killed."""
        self._connect().set_terminated(self.state["run_id"], STATUS[status])

    def ship(self) -> None:
        """Send all that has not been sent. Raises whatever MLflow raises; what was sent before that stays noted."""
        client = self._connect()
        for events, offset in self._batches():
            self._send(client, events)
            self.state["offset"] = offset
            write_json(self.state_file, self.state)

    def _batches(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Groups of events with the offset behind them: metrics together, anything else alone."""
        pending: list[dict[str, Any]] = []
        with open(self.run_dir / FILE_NAME, "rb") as file:
            file.seek(offset := int(self.state["offset"]))
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    break  # still being written
                event = parse_event(line)
                is_metrics = event is None or event["kind"] == "metrics"
                if pending and (not is_metrics or len(pending) >= _BATCH):
                    yield pending, offset
                    pending = []
                offset += len(line)
                if event is not None and is_metrics:
                    pending.append(event)
                elif event is not None:
                    yield [event], offset
        if offset > self.state["offset"]:
            yield pending, offset

    def _connect(self) -> MlflowClient:
        if self._client is None:
            _quiet_mlflow()
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self.uri)
            self.state["run_id"] = self.state["run_id"] or self._find_or_create_run(client)
            write_json(self.state_file, self.state)
            self._client = client
        return self._client

    def _find_or_create_run(self, client: MlflowClient) -> str:
        """One run for one run key: an earlier try may have made it and not heard the answer."""
        write_json(self.state_file, self.state)
        experiment_id = self._experiment_id(client)
        key = self.state["run_key"]
        found = client.search_runs([experiment_id], filter_string=f"tags.`scanvit.run_key` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {"scanvit.run_key": key, "mlflow.source.name": "scanvit", "mlflow.source.type": "LOCAL"}
        return str(client.create_run(experiment_id, run_name=self.run_dir.resolve().name, tags=tags).info.run_id)

    def _experiment_id(self, client: MlflowClient) -> str:
        name = self.settings.experiment_name
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:///"):  # else artifacts would land in whatever folder the process stands in
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=location))

    def _send(self, client: MlflowClient, events: list[dict[str, Any]]) -> None:
        run_id = self.state["run_id"]
        metrics = []
        for event in events:
            values = event["values"]
            match event["kind"]:
                case "metrics":
                    metrics += _metrics(event)
                case "start":
                    _log_params(client, run_id, flatten(values.get("experiment") or {}))
                case "tags":
                    for key, value in values.items():
                        client.set_tag(run_id, key, value)
                case "resume":
                    client.update_run(run_id, status="RUNNING")
                case "artifact":
                    self._send_artifact(client, str(values["path"]))
                case "end":
                    client.set_terminated(run_id, STATUS[values["status"]], end_time=int(event["time"] * 1000))
        for first in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[first : first + 1000])

    def _send_artifact(self, client: MlflowClient, relative: str) -> None:
        path = self.run_dir / relative
        if path.is_file():  # else it was replaced or cleared away since; a later event tells of the newer one
            folder = Path(relative).parent.as_posix()
            client.log_artifact(self.state["run_id"], str(path), None if folder == "." else folder)


def record_scores(run_dir: Path, metrics: Mapping[str, float | None], *, step: int, epoch: int, files: Sequence[str]) -> None:
    """Add an evaluation's figures and files to the run's events, from where they are shipped like everything else."""
    events = EventLog(run_dir)
    events.metrics({name: value for name, value in metrics.items() if value is not None}, epoch=epoch, step=step)
    for path in files:
        events.write("artifact", epoch=epoch, step=step, path=path)


def sync(run_dir: Path, *, uri: str | None = None) -> Shipper:
    """Send everything of a run that the tracking server has not got yet. Raises RunMissingError or TrackingError."""
    if not (run_dir / FILE_NAME).is_file():
        raise RunMissingError(f"{run_dir} is no run: it has no {FILE_NAME}.", hint="Give the folder that scanvit train made.")
    experiment = load_experiment(str(run_dir / "experiment.yaml"))
    if not experiment.tracking.mlflow:
        raise ConfigError(f"{run_dir} was run with tracking.mlflow=false.", hint="Train with tracking.mlflow=true to track a run.")
    shipper = Shipper(run_dir, experiment.tracking, uri=uri)
    try:
        shipper.ship()
    except Exception as error:
        raise TrackingError(
            f"The tracking server at {describe_place(shipper.uri)} cannot be used: {brief(error)}.",
            hint=f"Nothing is lost. Once it is back: scanvit track sync {run_dir}",
        ) from error
    return shipper


def _metrics(event: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    timestamp_ms = int(event["time"] * 1000)
    values = event["values"] | {"epoch": event["epoch"]}
    # MLflow refuses other characters in a key; class names may hold them.
    return [Metric(re.sub(r"[^\w\-. :/]", "_", key), float(value), timestamp_ms, event["step"]) for key, value in values.items() if value is not None]


def _log_params(client: MlflowClient, run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
    for first in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[first : first + 100])


def brief(error: BaseException) -> str:
    """An error of a client library, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _quiet_mlflow() -> None:
    """Short time-outs, so that a hanging server costs seconds, not minutes; no chatter on the terminal."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)

"""Copies a run's events to MLflow, once each, whatever happens to the server.

Shipping reads whole lines from where it last got to (``tracking_state``), sends them, and then moves on: a line is sent again after a
failure, never skipped. Nothing arrives twice all the same: a run is found again by its key, metrics at steps that the server has are left
out, and MLflow keeps one value for a (key, step, timestamp, value), one of each parameter and tag, one file for a path.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import TrackingConfig
from ..core.errors import ScanvitError, TrackingError
from ..core.events import FILE_NAME, parse_event
from ..storage.mlflow_client import absolute_uri, brief, connect, default_tracking_uri, error_code, explain, is_refusal, patience
from .mlflow_runs import experiment_id, find_or_create_run, remove_ghosts
from .tracking_state import FILE_NAME as STATE_FILE
from .tracking_state import TrackingState, bytes_behind, exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

STATUS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
FINAL_FILES = ("checkpoint.pth", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
"""What a run leaves, however it ends."""
_JUDGED = ("test_", "final_eval_")
"""How the metrics begin that no training writes."""
_BATCH, _LEAST = 1000, 50


class Shipper:
    """Sends a run's events to MLflow, from where the last one stopped."""

    def __init__(self, run_dir: Path, settings: TrackingConfig, *, uri: str | None = None) -> None:
        """A run stays with the server that it began on, unless ``uri`` or MLFLOW_TRACKING_URI tells otherwise."""
        self.run_dir, self.settings, self._given_uri = run_dir, settings, uri
        self.state = self._load()
        self._client: MlflowClient | None = None
        self._connected_to = ""
        self._latest: dict[str, tuple[int, float]] = {}
        self._batch = _BATCH

    @property
    def uri(self) -> str:
        """Without credentials."""
        return str(self.state.uri)

    @property
    def run_id(self) -> str:
        """MLflow's; empty as long as the server was never reached."""
        return self.state.run_id or ""

    @property
    def behind(self) -> int:
        """Bytes of events.jsonl that have not been shipped."""
        return bytes_behind(self.run_dir, self.state)

    @property
    def complete(self) -> bool:
        """Whether the server has all there is of a run that has ended."""
        return self.behind == 0 and self.state.status not in (None, "RUNNING")

    def ship(self, *, alive: bool) -> None:
        """Send all that has not been sent, and how the run stands. ``alive``: somebody still trains it.

        Raises whatever MLflow raises, noted in the state; what was sent before that stays noted too.
        """
        with exclusive(self.run_dir):
            self.state = self._load()
            try:
                self._ship(alive=alive)
            except Exception as error:
                self._client = None  # found again, and asked what it has, when it is back
                self._batch = max(_LEAST, self._batch // 4)
                self._note(error.message if isinstance(error, ScanvitError) else explain(error))
                raise
            self._note(None)

    def _load(self) -> TrackingState:
        state = TrackingState.load(self.run_dir)
        # With credentials, where there are any; the state keeps the address alone.
        self.target = absolute_uri(self._given_uri or os.environ.get("MLFLOW_TRACKING_URI") or state.uri or default_tracking_uri(self.run_dir))
        state.aim(self.target)
        return state

    def _note(self, error: str | None) -> None:
        if error != self.state.error:
            self.state.error = error
            self.state.save(self.run_dir)

    def _ship(self, *, alive: bool) -> None:
        client = self._client if self._client and self._connected_to == self.run_id else self._connect()
        for events, offset in self._batches():
            self._send(client, events)
            self.state.offset = offset
            self.state.save(self.run_dir)
            if self.state.phase == "running" and alive:  # also of a run that is trained again
                self._tell_status(client, "RUNNING")
        self._send_artifacts(client)
        if self.state.phase != "running":
            self._tell_status(client, STATUS.get(self.state.phase, "FAILED"))
        elif not alive and self.state.status != "KILLED":  # its process was killed, and could write no event of its end
            for path in FINAL_FILES:
                self._send_artifact(client, path)
            self.state.status = client.get_run(self.run_id).info.status
            if self.state.status == "RUNNING":  # else another machine went on with it, and told how that ended
                self._tell_status(client, "KILLED")

    # Connecting

    def _connect(self) -> MlflowClient:
        client = connect(self.target)
        if self.state.run_id and not self._has(client, self.state.run_id):  # another database came up at the same address
            self.state.run_id, self.state.status = None, None
            self.state.restart()
        if not self.state.run_id:
            self.state.save(self.run_dir)  # the key, before anything carries it
            experiment = experiment_id(client, self.settings.experiment_name, self.uri)
            self.state.run_id = find_or_create_run(
                client, experiment, run_dir=self.run_dir, run_key=self.state.run_key, parent=self._parent(client, experiment)
            )
            self.state.save(self.run_dir)
        self._latest = self._read_latest(client)
        self._client, self._connected_to = client, self.run_id
        return client

    def _parent(self, client: MlflowClient, experiment: str) -> str | None:
        """MLflow's id of the run that this one is a part of; made here if the server has not heard of it yet."""
        folder = self.run_dir / (self.state.parent or "")
        if not self.state.parent or not (folder / STATE_FILE).is_file():  # moved away from it
            return None
        return find_or_create_run(client, experiment, run_dir=folder, run_key=TrackingState.load(folder).run_key)

    def _has(self, client: MlflowClient, run_id: str) -> bool:
        try:
            client.get_run(run_id)
        except Exception as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _read_latest(self, client: MlflowClient) -> dict[str, tuple[int, float]]:
        """{key: (step, value)} of the newest value of each metric there: what was sent is sent in order, so all before it is there too."""
        run = client.get_run(self.run_id)
        if run.data.tags.get("scanvit.run_key") != self.state.run_key:
            raise TrackingError(f"What answers at {self.uri} is no MLflow server.", hint="Check MLFLOW_TRACKING_URI.")
        if run.info.lifecycle_stage != "active":
            raise TrackingError(
                f"The run {self.run_id} was deleted at {self.uri}.",
                hint=f"Bring it back there (mlflow runs restore --run-id {self.run_id}), or send it elsewhere with --uri.",
            )
        self.state.status, self.state.experiment_id = run.info.status, run.info.experiment_id
        return {metric.key: (metric.step, metric.value) for metric in run.data.to_proto().metrics}

    # Metrics, parameters, tags, the data set

    def _lines(self, offset: int) -> Iterator[tuple[dict[str, Any] | None, int]]:
        """The whole lines behind ``offset``, each with the offset behind it; None for one that is damaged."""
        with open(self.run_dir / FILE_NAME, "rb") as file:
            file.seek(offset)
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    return  # still being written
                offset += len(line)
                yield parse_event(line), offset

    def _batches(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Groups of events with the offset behind them: metrics together, anything else alone."""
        pending: list[dict[str, Any]] = []
        values, end = 0, self.state.offset
        for event, offset in self._lines(end):
            is_metrics = event is None or event["kind"] == "metrics"
            if pending and (not is_metrics or values >= self._batch):
                yield pending, end
                pending, values = [], 0
            end = offset
            if event is not None and is_metrics:
                pending.append(event)
                values += len(event["values"])
            elif event is not None:
                yield [event], end
        if end > self.state.offset:
            yield pending, end

    def _send(self, client: MlflowClient, events: list[dict[str, Any]]) -> None:
        """One by one where the server refuses them together: one bad event must not hold up all that follow."""
        try:
            self._send_together(client, events)
        except Exception as error:
            if not is_refusal(error):
                raise
            self._latest = self._read_latest(client)  # raises where the run itself is what is wrong
            if len(events) > 1:
                for event in events:
                    self._send(client, [event])
            else:
                self.state.refuse(f"{events[0]['kind']} at step {events[0]['step']}: {brief(error)}")

    def _send_together(self, client: MlflowClient, events: list[dict[str, Any]]) -> None:
        from . import mlflow_entities as entities

        run_id = self.run_id
        new: list[Metric] = []
        for event in events:
            values = event["values"]
            match event["kind"]:
                case "metrics":
                    new += [metric for metric in entities.metrics(event) if self._is_new(metric)]
                case "start":
                    params = entities.params(values.get("experiment") or {})
                    for first in range(0, len(params), 100):
                        client.log_batch(run_id, params=params[first : first + 100])
                case "tags":
                    client.log_batch(run_id, tags=entities.tags(values))
                case "dataset":
                    client.log_inputs(run_id, [entities.dataset_input(values)])
            if event["kind"] in ("start", "resume", "end"):
                self.state.phase = str(values.get("status", "failed")) if event["kind"] == "end" else "running"
            self.state.phase_time = event["time"]
        for first in range(0, len(new), self._batch):
            client.log_batch(run_id, metrics=new[first : first + self._batch])
        if new:
            self._batch = min(_BATCH, 2 * self._batch)

    def _is_new(self, metric: Metric) -> bool:
        """Steps that were made again after a resume are left out, though their times differ: the server has them. An evaluation judges the same
        step as often as it is asked to, and its newest figures hold. Several samples of the machine may share a step."""
        if metric.key.startswith("system/"):
            return True
        step, value = self._latest.get(metric.key, (-1, math.nan))
        is_judged = self.state.phase != "running" or metric.key.startswith(_JUDGED)
        repeated = metric.step < step or (metric.step == step and (not is_judged or repr(metric.value) == repr(value)))
        if not repeated:
            self._latest[metric.key] = (metric.step, metric.value)
        return not repeated

    # Artifacts and status

    def _send_artifacts(self, client: MlflowClient) -> None:
        """Once a path, however often it was announced: what counts is the file that lies there now."""
        events = [(event, offset) for event, offset in self._lines(self.state.artifacts_offset) if offset <= self.state.offset]
        last = {str(event["values"].get("path")): offset for event, offset in events if event and event["kind"] == "artifact"}
        for path, offset in sorted(last.items(), key=lambda item: item[1]):
            self._send_artifact(client, path)
            self.state.artifacts_offset = offset
            self.state.save(self.run_dir)
        if self.state.artifacts_offset < self.state.offset:
            self.state.artifacts_offset = self.state.offset
            self.state.save(self.run_dir)

    def _send_artifact(self, client: MlflowClient, relative: str) -> None:
        path = self.run_dir / relative
        if not path.resolve().is_relative_to(self.run_dir.resolve()):
            self.state.refuse(f"artifact {relative!r}: it lies outside the run")
            return
        if not path.is_file():  # replaced or cleared away since; a later event tells of the newer one
            return
        folder = Path(relative).parent.as_posix()
        try:
            with patience(path.stat().st_size):
                client.log_artifact(self.run_id, str(path), None if folder == "." else folder)
        except Exception as error:
            if not is_refusal(error):
                raise
            self._read_latest(client)
            self.state.refuse(f"artifact {relative!r}: {brief(error)}")

    def _tell_status(self, client: MlflowClient, status: str) -> None:
        if status == self.state.status:
            return
        if status == "RUNNING":
            client.update_run(self.run_id, status=status)
        else:
            remove_ghosts(client, run_key=self.state.run_key, keep=self.run_id)
            ended = self.state.phase_time or time.time()
            client.set_terminated(self.run_id, status, end_time=int(ended * 1000))
        self.state.status = status
        self.state.save(self.run_dir)

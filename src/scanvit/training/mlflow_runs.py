"""One run in MLflow for one run key, whatever answers were lost on the way."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import TrackingError
from ..core.events import read_events

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else its pages take the runs for evaluations of language models


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Of MLflow's experiment, made where it is missing."""
    if (found := client.get_experiment_by_name(name)) is not None:
        if not found.experiment_id:
            raise TrackingError("What answers there is no MLflow server.", hint="Check MLFLOW_TRACKING_URI.")
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):  # else artifacts would land in whatever folder the process stands in
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location, tags=_KIND))


def find_or_create_run(client: MlflowClient, experiment: str, *, run_dir: Path, run_key: str, parent: str | None = None) -> str:
    """An earlier try may have made it and not heard the answer: that one is found by its key. Of several the first holds.

    ``parent``: MLflow's id of the run that its pages show it under.
    """
    found = sorted(_runs_of(client, [experiment], run_key), key=lambda run: (run.info.start_time, run.info.run_id))
    if found:
        remove_ghosts(client, run_key=run_key, keep=str(found[0].info.run_id))
        return str(found[0].info.run_id)
    started = next((event["time"] for event in read_events(run_dir)), None)
    tags = {"scanvit.run_key": run_key, "mlflow.source.name": "scanvit", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    if parent:
        tags["mlflow.parentRunId"] = parent
    start_time = None if started is None else int(started * 1000)
    return str(client.create_run(experiment, start_time=start_time, run_name=run_dir.resolve().name, tags=tags).info.run_id)


def remove_ghosts(client: MlflowClient, *, run_key: str, keep: str) -> None:
    """Put other runs with this key into MLflow's bin. One is there when a server that hung made a run after all."""
    for run in _runs_of(client, [client.get_run(keep).info.experiment_id], run_key):
        if run.info.run_id != keep:
            client.delete_run(run.info.run_id)


def _runs_of(client: MlflowClient, experiments: list[str], run_key: str) -> Iterator[Run]:
    yield from client.search_runs(experiments, filter_string=f"tags.`scanvit.run_key` = '{run_key}'", max_results=50)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"

"""The copy of a run in MLflow. events.jsonl is the truth; a process beside the training (``shipping``) or ``scanvit track sync`` copies it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import ConfigError, RunMissingError, ScanvitError, TrackingError
from ..core.events import FILE_NAME, EventLog
from ..storage.mlflow_client import error_code, explain
from .run_folder import is_being_trained, load_tracking
from .shipper import Shipper

_TRIES = 3


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
    settings = load_tracking(run_dir)
    if not settings.mlflow:
        raise ConfigError(f"{run_dir} was run with tracking.mlflow=false.", hint="Train with tracking.mlflow=true to track a run.")
    shipper = Shipper(run_dir, settings, uri=uri)
    for tries_left in reversed(range(_TRIES)):
        try:
            shipper.ship(alive=is_being_trained(run_dir))
            return shipper
        except ScanvitError:
            raise
        except Exception as error:
            if tries_left and error_code(error) not in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
                time.sleep(1.0)
                continue
            raise TrackingError(
                f"The tracking server at {shipper.uri} cannot be used: {explain(error)}.",
                hint=f"Nothing is lost. Once it is back: scanvit track sync {run_dir}",
            ) from error
    raise AssertionError

"""How runs stand, read from their folders alone: for ``scanvit track status`` and for Prometheus. No server is asked."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import ScanvitError
from ..core.events import FILE_NAME, parse_event
from .run_folder import SETTINGS, is_being_trained, load_tracking
from .tracking_state import TrackingState, unsent

log = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 19
_GPU = re.compile(r"system/gpu_(\d+)_utilization_percentage")
_FIGURES = {
    "scanvit_images_per_second": ("images_per_s", "Images trained a second, in the newest epoch."),
    "scanvit_epoch": ("epoch", "Finished epochs."),
    "scanvit_train_loss": ("train_loss", "Mean training loss of the newest epoch."),
    "scanvit_val_loss": ("val_loss", "Validation loss of the newest epoch."),
}


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    run_dir: Path
    phase: str
    """running, finished, failed, preempted, or killed where its process is gone and wrote no end."""
    latest: dict[str, float]
    """The newest value of each metric, with ``epoch``."""
    tracking: TrackingState
    behind_bytes: int
    """Of events.jsonl that the tracking server has not got."""
    behind_s: float
    """Age of the oldest of them; 0 where there are none."""


def find_runs(path: Path) -> list[Path]:
    """The run that ``path`` is, or the runs in it, by name."""
    if (path / FILE_NAME).is_file():
        return [path]
    return sorted(file.parent for file in path.glob(f"*/{FILE_NAME}") if (file.parent / SETTINGS).is_file())


def trials_of(run_dir: Path) -> list[Path]:
    """The runs that a search has begun, in their order; none of any other run."""
    return find_runs(run_dir / "trials")


def read_status(run_dir: Path) -> RunStatus:
    latest: dict[str, float] = {}
    phase = "running"
    for event in _tail(run_dir):
        if event["kind"] == "metrics":
            latest |= {name: value for name, value in event["values"].items() if isinstance(value, int | float)}
            if "val_loss" in event["values"]:
                latest["epoch"] = event["epoch"]
        elif event["kind"] in ("start", "resume", "end"):
            phase = str(event["values"].get("status")) if event["kind"] == "end" else "running"
    if phase == "running" and not is_being_trained(run_dir):
        phase = "killed"
    state = TrackingState.load(run_dir)
    rest = unsent(run_dir, state) if load_tracking(run_dir).mlflow else b""
    oldest = next(filter(None, map(parse_event, rest.splitlines())), None)
    behind_s = max(0.0, time.time() - float(oldest["time"])) if oldest else 0.0
    return RunStatus(run_dir=run_dir, phase=phase, latest=latest, tracking=state, behind_bytes=len(rest), behind_s=behind_s)


def status_or_reason(run_dir: Path) -> RunStatus | str:
    """Why it cannot be told, where it cannot: one run that is damaged, or of another version, must not hide the others of its folder."""
    try:
        return read_status(run_dir)
    except ScanvitError as error:
        return error.message
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def exposition(runs: Sequence[Path]) -> str:
    """Prometheus's text format, version 0.0.4: one sample a run of each figure that the run has. A run that cannot be read is left out."""
    statuses = []
    for run in runs:
        if isinstance(found := status_or_reason(run), str):
            _leave_out(run, found)
        else:
            statuses.append(found)
    families: dict[str, tuple[str, list[tuple[dict[str, str], float]]]] = {}

    def add(name: str, about: str, status: RunStatus, value: float, **labels: str) -> None:
        families.setdefault(name, (about, []))[1].append(({"run": status.run_dir.resolve().name, **labels}, value))

    for status in statuses:
        add("scanvit_running", "1 while a process trains the run.", status, float(status.phase == "running"))
        for name, (metric, about) in _FIGURES.items():
            if metric in status.latest:
                add(name, about, status, status.latest[metric])
        for metric, value in status.latest.items():
            if match := _GPU.fullmatch(metric):
                add("scanvit_gpu_utilization_percent", "Of each GPU of the run.", status, value, gpu=match[1])
        add("scanvit_tracking_behind_bytes", "Of events that the tracking server has not got.", status, status.behind_bytes)
        add("scanvit_tracking_behind_seconds", "Age of the oldest event that the tracking server has not got.", status, status.behind_s)
    lines = []
    for name, (about, samples) in families.items():
        lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{_labels(labels)}}} {_number(value)}" for labels, value in samples]
    return "\n".join([*lines, ""])


@cache  # the page is asked for every few seconds
def _leave_out(run_dir: Path, reason: str) -> None:
    log.warning("%s is left out: %s", run_dir, reason)


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").encode("utf-8", "replace").decode("utf-8")


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else "NaN"


def _tail(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The newest events: enough for the last value of everything that is written once an epoch."""
    with open(run_dir / FILE_NAME, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        for line in file:
            if event := parse_event(line):
                yield event

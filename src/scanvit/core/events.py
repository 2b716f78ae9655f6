"""The run's own record: one JSON object a line, appended and flushed. It is the truth; MLflow gets a copy.

A line is ``{"time": unix seconds, "kind": str, "epoch": int, "step": int, "values": {...}}``. Kinds:

    start     values: experiment, fingerprint, world_size        resume    values: checkpoint
    metrics   values: {name: number}                             artifact  values: path (relative to the run), folder
    tags      values: {name: str}                                end       values: status (finished, failed, preempted)

``step`` counts optimizer steps. After a resume the steps since the checkpoint are written again, and are the same numbers: the last
line for a (name, step) holds.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import storage_errors

FILE_NAME = "events.jsonl"


class EventLog:
    """Appends events to RUN/events.jsonl. Safe to call from several threads of one process."""

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / FILE_NAME
        self._lock = threading.Lock()
        with storage_errors(self.path):
            _end_last_line(self.path)

    def write(self, kind: str, *, epoch: int = 0, step: int = 0, **values: Any) -> None:
        """A whole line or, on a full disk, none. Numbers that JSON does not know (NaN, infinity) are written as null."""
        event = {"time": round(time.time(), 3), "kind": kind, "epoch": epoch, "step": step, "values": {k: _plain(v) for k, v in values.items()}}
        rest = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        with self._lock, storage_errors(self.path), open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if kind != "metrics":
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # the next event would be glued to half a line, and both lost
                raise

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        self.write("metrics", epoch=epoch, step=step, **values)


def read_events(run_dir: Path | str) -> Iterator[dict[str, Any]]:
    """All whole lines, in order. One cut short, by a kill or by a full disk under an older version, is left out."""
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            if event := parse_event(line):
                yield event


def parse_event(line: bytes) -> dict[str, Any] | None:
    """None for a line that is no event (cut short, or damaged)."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("values"), dict) else None


def metric_history(run_dir: Path | str) -> dict[str, list[tuple[int, int, float]]]:
    """{name: [(epoch, step, value), ...]} in the order of steps, the last line for a step taken, nulls left out."""
    latest: dict[str, dict[int, tuple[int, float]]] = {}
    for event in read_events(run_dir):
        if event["kind"] == "metrics":
            for name, value in event["values"].items():
                if value is not None:
                    latest.setdefault(name, {})[event["step"]] = (event["epoch"], value)
    return {name: [(epoch, step, value) for step, (epoch, value) in sorted(steps.items())] for name, steps in latest.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _end_last_line(path: Path) -> None:
    """A killed writer may have left half a line: close it, so that the next event starts its own."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

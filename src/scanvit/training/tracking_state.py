"""tracking.json: where a run's copy in MLflow is, and how far it has got. Written by whoever ships, one at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..core.errors import TrackingError
from ..core.events import FILE_NAME as EVENTS
from ..storage.atomic import storage_errors, write_json
from ..storage.mlflow_client import absolute_uri, default_tracking_uri, without_credentials

FILE_NAME = "tracking.json"
_MOST_REFUSALS = 20


@dataclass(kw_only=True)
class TrackingState:
    run_key: str = ""
    """Made once for a run; a tag of the run in MLflow, by which it is found again. It goes with the run, to any machine."""
    parent: str | None = None
    """Folder of the run that this one is a part of, relative to this one's: of a search, for its trials."""
    uri: str | None = None
    """Of the tracking server, never with credentials or a relative path."""
    run_id: str | None = None
    """MLflow's, on that server."""
    experiment_id: str | None = None
    """Of the run, on that server."""
    status: str | None = None
    """MLflow's, as it was last told."""
    offset: int = 0
    """Bytes of events.jsonl whose metrics, parameters and tags have arrived."""
    artifacts_offset: int = 0
    """Bytes of events.jsonl whose artifacts have arrived."""
    phase: str = "running"
    """What the events up to ``offset`` say last: running, finished, failed, preempted."""
    phase_time: float | None = None
    """Unix seconds of the last event up to ``offset``."""
    error: str | None = None
    """Why the last try failed; None after one that did not."""
    refused: list[str] = field(default_factory=list)
    """What the server will never take, with its reason."""

    @classmethod
    def load(cls, run_dir: Path) -> TrackingState:
        """Of a run that has none, or a damaged one: a new state. What was sent before is then found by asking the server."""
        try:
            stored = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
            known = {f.name: f for f in fields(cls)}
            state = cls(**{key: value for key, value in stored.items() if key in known})
            if max(state.offset, state.artifacts_offset) > _size(run_dir / EVENTS):  # an older copy of the events came back, as after a lost node
                state.offset = state.artifacts_offset = 0
        except (OSError, ValueError, TypeError, AttributeError):
            state = cls()
        state.run_key = state.run_key or uuid.uuid4().hex
        return state

    def save(self, run_dir: Path) -> None:
        if run_dir.is_dir():  # one that somebody took away meanwhile is not made again
            write_json(run_dir / FILE_NAME, asdict(self))

    @property
    def run(self) -> tuple[str, str] | None:
        """(MLflow's id of the experiment, of the run), once the server has told them."""
        return (self.experiment_id, self.run_id) if self.experiment_id and self.run_id else None

    def aim(self, uri: str) -> None:
        """Turn to a server. Another one than before gets everything; what it has got already is not sent twice."""
        uri = without_credentials(absolute_uri(uri))
        if uri != self.uri:
            self.uri, self.run_id, self.status = uri, None, None
            self.restart()

    def restart(self) -> None:
        self.offset, self.artifacts_offset, self.phase, self.phase_time, self.error, self.refused = 0, 0, "running", None, None, []

    def refuse(self, sentence: str) -> None:
        if sentence not in self.refused:
            self.refused = [*self.refused, sentence][-_MOST_REFUSALS:]


def ensure_run_key(run_dir: Path, *, uri: str | None = None, run_key: str | None = None, parent: Path | None = None) -> str:
    """Give a run its key before anything is sent, and return it: whoever copies any part of this run then writes to one run in MLflow.

    A launcher that may start a run again on other machines calls this once, keeps the key with the run, and calls it with that key wherever
    the run folder is made anew. ``uri`` settles the tracking server as well. A key that the folder has already is kept, unless ``run_key``
    is another: then that one holds, and what was noted about the old one is dropped. ``parent``: folder of the run that this one is a part of.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(run_dir):
        state = TrackingState.load(run_dir)
        if run_key and run_key != state.run_key:
            state = TrackingState(run_key=run_key, uri=state.uri)
        if uri or state.uri is None:
            state.aim(uri or default_tracking_uri(run_dir))
        if parent:
            state.parent = os.path.relpath(parent, run_dir)
        state.save(run_dir)
        return state.run_key


@contextmanager
def exclusive(run_dir: Path, *, wait_s: float = 30.0) -> Iterator[None]:
    """Only one process sends a run at a time: two could make two runs. The lock goes with the process, however it ends."""
    with storage_errors(run_dir):
        descriptor = os.open(run_dir / ".tracking.lock", os.O_CREAT | os.O_RDWR, 0o644)
    deadline = time.monotonic() + wait_s
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise TrackingError(f"Another process is sending {run_dir}.", hint=f"See how far it is: scanvit track status {run_dir}")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def bytes_behind(run_dir: Path, state: TrackingState) -> int:
    """Of whole lines in events.jsonl that have not been shipped."""
    return len(unsent(run_dir, state))


def unsent(run_dir: Path, state: TrackingState) -> bytes:
    """The whole lines of events.jsonl behind the last one that has arrived with everything."""
    try:
        with open(run_dir / EVENTS, "rb") as file:
            file.seek(min(state.offset, state.artifacts_offset))
            rest = file.read()
    except FileNotFoundError:
        return b""
    return rest[: rest.rfind(b"\n") + 1]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

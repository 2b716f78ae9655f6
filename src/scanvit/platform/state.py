"""What a platform's folder holds beside its settings, and who may change it: one command at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import PlatformStateError
from ..storage.atomic import storage_errors, write_json

RUNTIME_FILE = "runtime.json"
"""What jobs of Ray in the containers are given; there from the first ``up`` of an engine of containers until its volumes are deleted."""
_LOCK, _STATE = "lock", "platform.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """What ``up`` was last asked for.

    ``engine``: docker, podman or native. ``profiles``: none after ``down``, which leaves the engine its data. ``paused``: services that a restore
    has stopped for its while.
    """

    engine: str
    profiles: tuple[str, ...]
    paused: tuple[str, ...] = ()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """The block alone changes the platform. Raises PlatformStateError where another command is at it; a killed one holds nothing."""
    if not folder.is_dir():
        raise PlatformStateError(f"{folder} is no platform: it is not there.", hint=f"Make one: scanvit platform init {folder}")
    with storage_errors(folder):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
            raise PlatformStateError(
                f"Another scanvit command (process {who or 'unknown'}) is at work on {folder}.", hint="Wait until it has ended, then run this again."
            ) from None
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> State | None:
    """None before the first ``up`` and after ``down --volumes``."""
    path = folder / _STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return State(engine=str(values["engine"]), profiles=tuple(map(str, values["profiles"])), paused=tuple(map(str, values.get("paused", ()))))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise PlatformStateError(f"{path} cannot be read.", hint="Remove it, then run: scanvit platform up") from None


def write_state(folder: Path, state: State | None) -> None:
    if state is None:
        (folder / _STATE).unlink(missing_ok=True)
    else:
        write_json(folder / _STATE, asdict(state))

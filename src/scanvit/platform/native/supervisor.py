"""One process that keeps the programs of a platform alive. ``python -m scanvit.platform.native.supervisor FOLDER``.

A program starts when those that it comes after are ready, restarts after a pause when it dies, and is given up after six quick deaths in a
row. SIGHUP makes the supervisor read again what should run, and try again what it gave up; SIGTERM ends everything.

No process is orphaned, whatever is killed. The supervisor is watched by a guard that inherits all its descendants and ends them when it is
gone; the guard's death ends the supervisor; and should both go at once, each program gets its stop signal from the kernel, and the next
``up`` or ``down`` finds the rest by a variable that they all carry (``leftovers``).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...storage.atomic import write_json
from ...storage.processes import on_parent_death
from ..processes import identity
from .guard import guarded
from .leftovers import PATIENCE_S, end_group
from .programs import Program

STATE_FILE, LOCK_FILE = "run/supervisor.json", "run/supervisor.lock"
_TICK_S, _QUICK_S = 0.2, 10.0
_PAUSES_S = (0.5, 1, 2, 4, 8)  # before the tries after the first, second, ... quick death; then it is given up
_GROUP_S = 2.0  # for what a program leaves behind in its group
_LOG_BYTES = 20_000_000
_log = logging.getLogger(__name__)


@dataclass
class Child:
    """``state``: waiting, starting, ready, pausing, failed or stopped."""

    program: Program
    state: str = "waiting"
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    quick_deaths: int = 0
    restarts: int = 0
    exit_code: int | None = None
    again_at: float = field(default=0.0, repr=False)

    def report(self) -> dict[str, object]:
        pid = self.process.pid if self.process else None
        return {"state": self.state, "pid": pid, "restarts": self.restarts, "exit_code": self.exit_code}


class Supervisor:
    """``plan`` gives the programs that should run; it is asked again on SIGHUP."""

    def __init__(self, folder: Path, plan: Callable[[], Sequence[Program]]) -> None:
        self.folder, self.plan = folder, plan
        self.children: dict[str, Child] = {}
        self._stopping = self._reload = False
        self._told: object = None

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopping", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "_stopping", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "_reload", True))
        self._follow_plan()
        try:
            while not self._stopping:
                if self._reload:
                    self._reload = False
                    self._follow_plan()
                for child in list(self.children.values()):
                    self._step(child)
                self._tell()
                time.sleep(_TICK_S)
        finally:
            self._stop(list(self.children))
            self._tell()

    def _follow_plan(self) -> None:
        planned = {program.name: program for program in self.plan()}
        changed = [name for name, child in self.children.items() if planned.get(name) != child.program]
        self._stop(changed)
        self.children = {name: self.children.get(name, Child(program)) for name, program in planned.items()}
        for child in self.children.values():
            if child.state == "failed":
                child.state, child.quick_deaths = "waiting", 0

    def _step(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is not None and child.process.poll() is not None:
            self._bury(child, now)
        if child.state == "starting" and self._is_ready(child, now):
            child.state = "ready"
            _log.info("%s is ready after %.1f s", child.program.name, now - child.started)
        if child.state == "pausing" and now >= child.again_at:
            child.state = "waiting"
        if child.state == "waiting" and all(self.children[name].state == "ready" for name in child.program.after if name in self.children):
            self._start(child, now)
        if child.quick_deaths and child.state == "ready" and now - child.started > _QUICK_S:
            child.quick_deaths = 0
        self._trim_log(child.program.name)

    def _start(self, child: Child, now: float) -> None:
        program = child.program
        try:
            with open(self._log_file(program.name), "ab") as log:
                child.process = subprocess.Popen(
                    program.command,
                    env=dict(program.environment),
                    cwd=program.cwd or self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a group of its own: what it started ends with it
                    preexec_fn=on_parent_death(program.stop_signal),
                    **identity(program.user),
                )
        except OSError as error:
            _log.warning("%s cannot start: %s", program.name, error)
            child.exit_code = 127
            self._pause(child, now)
            return
        child.state, child.started = "starting", now
        _log.info("%s started as process %d", program.name, child.process.pid)

    def _bury(self, child: Child, now: float) -> None:
        assert child.process is not None
        end_group(child.process.pid, patience_s=_GROUP_S)  # its children may still hold its port
        child.exit_code, child.process = child.process.returncode, None
        _log.warning("%s died with exit code %s after %.1f s", child.program.name, child.exit_code, now - child.started)
        if child.state != "ready" or now - child.started < _QUICK_S:
            self._pause(child, now)
        else:
            child.quick_deaths, child.state, child.again_at = 0, "pausing", now + _PAUSES_S[0]
        child.restarts += child.state == "pausing"

    def _pause(self, child: Child, now: float) -> None:
        if child.quick_deaths < len(_PAUSES_S):
            child.state, child.again_at = "pausing", now + _PAUSES_S[child.quick_deaths]
            child.quick_deaths += 1
        else:
            child.state = "failed"
            _log.error("%s died %d times in a row: it is given up", child.program.name, child.quick_deaths + 1)

    def _is_ready(self, child: Child, now: float) -> bool:
        if child.program.port is None:
            return now - child.started >= _QUICK_S / 5
        with suppress(OSError), socket.create_connection((child.program.host, child.program.port), timeout=0.5):
            return True
        return False

    def _stop(self, names: Sequence[str]) -> None:
        """In the reverse order of their start: servers before what they store in."""
        for name in reversed(names):
            child = self.children[name]
            if child.process is not None:
                with suppress(ProcessLookupError):
                    child.process.send_signal(child.program.stop_signal)
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(PATIENCE_S)
                end_group(child.process.pid, patience_s=_GROUP_S)
                child.process.wait()
                child.process = None
            child.state = "stopped"
            del self.children[name]

    def _log_file(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _trim_log(self, name: str) -> None:
        path = self._log_file(name)
        with suppress(OSError):
            if path.stat().st_size > _LOG_BYTES:
                path.with_suffix(".log.1").write_bytes(path.read_bytes())
                os.truncate(path, 0)  # the program goes on at the beginning: it appends

    def _tell(self) -> None:
        told = {"pid": os.getpid(), "programs": {name: child.report() for name, child in self.children.items()}}
        if told != self._told:
            with suppress(OSError):  # a full disk must not end what runs
                write_json(self.folder / STATE_FILE, told)
                self._told = told


def main() -> None:
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)

    def plan() -> Sequence[Program]:
        from ..settings import load
        from ..state import read_state
        from .plan import programs

        state = read_state(folder)
        return [p for p in programs(load(folder), state.profiles) if p.name not in state.paused] if state else ()

    guarded(folder / LOCK_FILE, lambda: Supervisor(folder, plan).run())


if __name__ == "__main__":
    main()

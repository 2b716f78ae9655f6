"""The platform as plain processes under the supervisor."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, PlatformStateError, PortTakenError, UnhealthyError
from ...storage.atomic import storage_errors
from .. import postgres
from ..services import SERVICES
from ..settings import Settings
from ..state import State, read_state, write_state
from .guard import holder
from .leftovers import end_leftovers, listening
from .log_files import follow, last_lines
from .plan import DATA, prepare, programs
from .programs import MARKER, Program
from .supervisor import LOCK_FILE, STATE_FILE

_STOP_S = 90.0
# Ports that a program takes beside the one at which its service is called.
_MORE_PORTS = {"ray-head": ("RAY_PORT",)}


class Native:
    """See ``platform.engine.Engine``."""

    name = "native"

    def preflight(self, settings: Settings, profiles: Sequence[str]) -> None:
        planned = programs(settings, profiles)
        _check_port(settings, settings.bind, 0, "SCANVIT_BIND")  # is it an address of this machine?
        running = set(self._programs(settings.folder))
        if holder(settings.folder / LOCK_FILE) is None:
            running = set()
            end_leftovers(settings.folder)
        _check_ports(settings, [program for program in planned if program.name not in running])

    def start(self, settings: Settings, profiles: Sequence[str]) -> None:
        prepare(settings, profiles)
        write_state(settings.folder, State(engine=self.name, profiles=tuple(profiles)))
        if self._tell_supervisor(settings.folder):
            return
        log_file = settings.folder / "logs" / "supervisor.log"
        with storage_errors(log_file), open(log_file, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "scanvit.platform.native.supervisor", str(settings.folder)],
                env=os.environ | {MARKER: str(settings.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it stays when this command's terminal closes
            )
        while holder(settings.folder / LOCK_FILE) is None:
            if process.poll() is not None:
                raise UnhealthyError("The supervisor ended at once.", hint=f"{last_lines(log_file, 1)}   (whole: {log_file})")
            time.sleep(0.05)

    def failures(self, settings: Settings) -> dict[str, str]:
        if holder(settings.folder / LOCK_FILE) is None:
            return {"supervisor": "it has ended"}
        programs_ = self._programs(settings.folder)
        return {name: f"it died again and again, last with exit code {p['exit_code']}" for name, p in programs_.items() if p["state"] == "failed"}

    def restarts(self, settings: Settings) -> dict[str, int]:
        return {name: int(p["restarts"]) for name, p in self._programs(settings.folder).items()}

    def logs(self, settings: Settings, service: str, *, lines: int, following: bool) -> Iterator[str]:
        path = settings.folder / "logs" / f"{service}.log"
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.log"))
            raise PlatformStateError(f"{service} has written no log.", hint=f"There are logs of: {', '.join(known) or 'nothing yet'}")
        return follow(path, lines) if following else iter(last_lines(path, lines).splitlines())

    def pause(self, settings: Settings, service: str) -> None:
        self._set_paused(settings, (service,))
        until = time.monotonic() + _STOP_S
        while service in self._programs(settings.folder) and time.monotonic() < until:
            time.sleep(0.1)

    def resume(self, settings: Settings, service: str) -> None:
        self._set_paused(settings, ())

    def postgres_tool(self, settings: Settings, name: str) -> tuple[list[str], dict[str, str]]:
        return postgres.tool(settings, name)

    def stop(self, settings: Settings, *, volumes: bool) -> None:
        lock = settings.folder / LOCK_FILE
        if guard := holder(lock):
            os.kill(guard, signal.SIGTERM)
            until = time.monotonic() + _STOP_S
            while holder(lock) is not None and time.monotonic() < until:
                time.sleep(0.1)
        end_leftovers(settings.folder)
        (settings.folder / STATE_FILE).unlink(missing_ok=True)
        if volumes:
            _delete_data(settings.folder / "data")

    def _tell_supervisor(self, folder: Path) -> bool:
        guard = holder(folder / LOCK_FILE)
        if guard:
            os.kill(guard, signal.SIGHUP)
        return bool(guard)

    def _set_paused(self, settings: Settings, paused: tuple[str, ...]) -> None:
        state = read_state(settings.folder)
        if state is not None:
            write_state(settings.folder, replace(state, paused=paused))
            self._tell_supervisor(settings.folder)

    def _programs(self, folder: Path) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["programs"]
        except (OSError, ValueError, KeyError):
            return {}
        return found


def _delete_data(data: Path) -> None:
    """What the platform made there, which may lie on another disk behind a link. Raises StorageError where something stays."""
    for path in (data / name for name in DATA):
        with storage_errors(path):
            if path.is_dir():
                shutil.rmtree(path.resolve())
            if path.is_symlink():
                path.unlink()
    with suppress(OSError):  # it is not there, or holds what others have laid there
        data.rmdir()


def _check_ports(settings: Settings, planned: Sequence[Program]) -> None:
    variables = {service.name: service.port for service in SERVICES} | {"run-metrics": "RUN_METRICS_PORT"}
    wanted: dict[int, tuple[str, str]] = {}
    for program in planned:
        if program.port is not None:
            host = settings.bind if program.host == settings.host else program.host  # some listen on loopback, whatever the platform's address
            wanted[program.port] = (host, variables.get(program.name, "STORE_PORT (the store takes three more behind it)"))
        wanted |= {settings.port(name): (settings.bind, name) for name in _MORE_PORTS.get(program.name, ())}
    for port, (host, variable) in wanted.items():
        _check_port(settings, host, port, variable)


def _check_port(settings: Settings, host: str, port: int, variable: str) -> None:
    hint = f"Change {variable} in {settings.folder / '.env'}."
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise PortTakenError(f"Port {port} is for root alone.", hint=hint) from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"{host} is no address of this machine.", hint="Give one that it has: scanvit platform up --bind 127.0.0.1") from None
            who = listening([port]).get(port, "another program")
            raise PortTakenError(f"Port {port} is taken by {who}.", hint=f"End that, or change {variable} in {settings.folder / '.env'}.") from None

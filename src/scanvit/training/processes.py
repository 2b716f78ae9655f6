"""The processes of one machine in a run: started together, watched together, ended together.

Imports nothing heavy: the processes start at once instead of after the launcher's own import of PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ..core import errors
from ..core.errors import PreemptedError, ProcessLostError, ScanvitError, StalledError
from ..core.runtime import usable_cores
from .worker import Job, Report

log = logging.getLogger(__name__)

_POLL_S = 0.05
_PATIENCE_S = 10.0
"""How long the others may take to end by themselves once a process has failed: they notice by their broken connections."""
_LAST_WORDS_S = 60.0
"""The same after an orderly stop, beside the tracking's ``drain_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """This machine's place in a run."""

    processes: int
    nodes: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    """Where rank zero of the first machine is found."""
    port: int | None = None
    """None: any free one, which only a single machine can agree on."""


@dataclass(kw_only=True)
class _Process:
    rank: int
    popen: subprocess.Popen[bytes]
    report_fd: int
    report: Report | None = None
    ended_at: float | None = None
    killed: bool = False
    """By us, so that its end says nothing."""

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.ended_at is None and self.popen.poll() is not None:
            self.ended_at = time.monotonic()
            self.report = _read_report(self.report_fd)
        return self.ended_at is not None

    @property
    def code(self) -> int:
        return int(self.popen.returncode)


def run_processes(job: Job, node: Node, *, patience_s: float = 0.0) -> dict[str, Any]:
    """Start the processes, wait for all of them, and return what rank zero (else the first here) handed back.

    ``patience_s``: how long after an orderly stop the slowest may take on top. SIGTERM is handed on to the processes; an interrupt from the
    keyboard asks them for a checkpoint as well. When this returns or raises, none of them is left.

    Raises the error of the process that failed first: its own one where it is of our tree, ProcessLostError where it was killed or
    crashed, StalledError where one did not take part, RuntimeError with the traceback as a note for anything else.
    """
    processes: list[_Process] = []
    with _handing_on_sigterm(processes) as asked:
        try:
            _start(processes, job, node)
            _watch(processes, patience_s=patience_s)
        except KeyboardInterrupt:
            _ask_to_stop(processes)
            _watch(processes, patience_s=patience_s)
            raise
        finally:
            _end_all(processes)
    if failed := _cause(processes):
        error = _as_error(failed, processes, total=node.processes * node.nodes, run_dir=Path(job.run_dir))
        if asked.is_set() and isinstance(error, (ProcessLostError, StalledError)):
            raise PreemptedError(f"Training was asked to stop. {error.message}", hint=f"Go on with: scanvit train --resume {job.run_dir}")
        raise error
    report = processes[0].report
    assert report is not None
    assert report.result is not None
    return report.result


def _start(processes: list[_Process], job: Job, node: Node) -> None:
    environment = os.environ | {"WORLD_SIZE": str(node.processes * node.nodes), "LOCAL_WORLD_SIZE": str(node.processes), "MASTER_ADDR": node.address}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))}
    # Without this each process would take all cores and they would only hinder each other.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // node.processes)))
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server((node.address, 0))) if node.port is None else None
        environment["MASTER_PORT"] = str(listener.getsockname()[1] if listener else node.port)
        for local_rank in range(node.processes):
            rank = node.rank * node.processes + local_rank
            listen_fd = listener.fileno() if listener and rank == 0 else None
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "GROUP_RANK": str(node.rank)}
            processes.append(_start_one(replace(job, listen_fd=listen_fd), rank, environment | ranks))


def _start_one(job: Job, rank: int, environment: dict[str, str]) -> _Process:
    reading, writing = os.pipe()
    try:
        popen = subprocess.Popen(
            [sys.executable, "-m", "scanvit.training.worker"],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=(writing, *(() if job.listen_fd is None else (job.listen_fd,)), *job.keep_fds),
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    assert popen.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its end will tell
        popen.stdin.write(json.dumps(asdict(replace(job, report_fd=writing))).encode() + b"\n")
        popen.stdin.flush()
    return _Process(rank=rank, popen=popen, report_fd=reading)


def _watch(processes: list[_Process], *, patience_s: float) -> None:
    """Until all have ended, or one has failed and the others had their time to end by themselves."""
    deadline = None
    while _still_running(processes):
        if deadline is None and (failed := [p for p in processes if p.ended_at is not None and p.code]):
            is_orderly = failed[0].code == PreemptedError.exit_code
            deadline = time.monotonic() + (patience_s + _LAST_WORDS_S if is_orderly else _PATIENCE_S)
        if deadline is not None and (time.monotonic() > deadline or all(map(_is_stopped, processes))):
            return
        time.sleep(_POLL_S)


def _still_running(processes: list[_Process]) -> bool:
    return len([process for process in processes if process.poll()]) < len(processes)


def _is_stopped(process: _Process) -> bool:
    """Ended, or halted by SIGSTOP: nothing more will come from it."""
    if process.ended_at is not None:
        return True
    try:
        return bool(psutil.Process(process.popen.pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return True


def _end_all(processes: list[_Process]) -> None:
    for process in processes:
        if not process.poll():
            process.killed = True
            process.popen.kill()  # reaches a stopped process too
            process.popen.wait()
            process.poll()
        assert process.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.popen.stdin.close()


def _ask_to_stop(processes: list[_Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.popen.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _handing_on_sigterm(processes: list[_Process]) -> Iterator[threading.Event]:
    """The event is set once the signal has come."""
    asked = threading.Event()

    def hand_on(signum: int, frame: FrameType | None) -> None:
        asked.set()
        _ask_to_stop(processes)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _cause(processes: list[_Process]) -> _Process | None:
    """The process whose failure made the others fail. A signal from outside comes first, then whoever failed earliest."""
    failed = [process for process in processes if process.code and not process.killed]
    by_signal = [process for process in failed if process.code < 0]
    return min(by_signal or failed, key=lambda process: process.report.at if process.report else process.ended_at or 0.0, default=None)


def _as_error(cause: _Process, processes: list[_Process], *, total: int, run_dir: Path) -> Exception:
    who = f"Process {cause.rank} of {total}"
    if cause.code == -signal.SIGTERM:
        has_checkpoint = (run_dir / "checkpoints" / "last.ckpt").exists()
        where = "outside of its steps; its newest checkpoint holds." if has_checkpoint else "before its first checkpoint."
        return PreemptedError(f"Training was asked to stop {where}", hint=f"Go on with: scanvit train --resume {run_dir}")
    if cause.code < 0 or cause.report is None:
        return ProcessLostError(f"{who} {_end_of(cause.code)}.")
    kind = getattr(errors, cause.report.error or "", None)
    if kind is StalledError:
        stopped = [process for process in processes if process.killed]
        silent = f"Process {stopped[0].rank} of {total}" if stopped else "Another process"
        return StalledError(f"{silent} did not take part for longer than trainer.timeout_s ({cause.report.message}).")
    if isinstance(kind, type) and issubclass(kind, ScanvitError):
        return kind(cause.report.message, hint=cause.report.hint)
    if cause.report.error == "MemoryError":
        return MemoryError(cause.report.message)
    error = RuntimeError(f"{who} failed: {cause.report.error}: {cause.report.message}")
    error.add_note(cause.report.traceback)
    return error


def _end_of(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and without a word"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _read_report(descriptor: int) -> Report | None:
    with open(descriptor, "rb") as file:
        content = file.read()
    try:
        return Report(**json.loads(content))
    except (ValueError, TypeError):  # killed before or while it wrote
        return None

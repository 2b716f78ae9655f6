"""``scanvit ray train`` as a command against a real cluster, watched from outside: its workers' processes, its steps, its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from tests.integration.cluster_harness import RayCluster, in_sessions, kill_at_once, wait_for
from tests.integration.conftest import SOURCES
from tests.integration.faults.conftest import Fault
from tests.integration.training_runs import SETTINGS, assert_same, differing_weights, last_step

from scanvit.core.events import read_events

STARTED = re.compile(r"worker (\d+) started on (\S+) \(process (\d+)\)")
EPOCHS = 60
LONG = (f"trainer.max_epochs={EPOCHS}", "trainer.per_device_batch_size=2", "trainer.timeout_s=20")  # two workers: 24 steps an epoch
CLOCKS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


@dataclass(frozen=True)
class Worker:
    rank: int
    node: str
    pid: int


class RayRun:
    """One run. The command may be started several times: each time it goes on."""

    def __init__(self, cluster: RayCluster, pack: Path, run_dir: Path, *options: str | Path, settings: tuple[str, ...] = (), **environment: str) -> None:
        self.cluster, self.run_dir = cluster, run_dir
        changes = [word for setting in (*SETTINGS, *LONG, *settings) for word in ("--set", setting)]
        self.arguments = ["ray", "train", "tiny", "--pack", pack, "--run-dir", run_dir, *options, *changes]
        self.environment = cluster.client_environment | CLOCKS | {"PYTHONPATH": str(SOURCES), "COLUMNS": "300"} | environment
        self.lines: list[str] = []
        self.sessions: set[int] = set()
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> RayRun:
        enter = self.cluster.head.box.enter if self.cluster.head.box else []
        command = [*enter, sys.executable, "-m", "scanvit", *map(str, self.arguments), *options]
        self.process = subprocess.Popen(
            command, env=self.environment, cwd=self.run_dir.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.sessions.add(self.process.pid)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        return self

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line.rstrip())

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    @property
    def workers(self) -> list[Worker]:
        """All that were ever started, in order."""
        return [Worker(int(rank), node, int(pid)) for rank, node, pid in STARTED.findall(self.said)]

    def worker(self, rank: int) -> Worker:
        """The newest of that rank. The command tells of it a moment after it has started."""

        def newest() -> Worker | None:
            found = next((worker for worker in reversed(self.workers) if worker.rank == rank), None)
            return found if found and (self.cluster.head.box or psutil.pid_exists(found.pid)) else None

        found = wait_for(newest, f"worker {rank} of\n{self.said}", 60)
        assert isinstance(found, Worker)
        return found

    @property
    def step(self) -> int:
        """The last one that rank zero's events tell of, wherever it trains now."""
        return self.step_between(0.0, math.inf)

    def step_between(self, begin: float, end: float) -> int:
        """The last one of those made in that time (Unix, s) that they tell of."""
        folders = self.cluster.cache.glob(f"workers/{self.run_dir.name}.0.*/{self.run_dir.name}")
        return max((event["step"] for folder in folders for event in _events(folder) if begin < event["time"] <= end), default=0)

    def saved_steps(self, storage: Path) -> list[int]:
        """Of the complete checkpoints in the storage."""
        return sorted(json.loads(file.read_bytes())["step"] for file in storage.glob(f"{self.run_dir.name}-*/checkpoint*/bundle.json"))

    def wait_for_step(self, step: int, timeout_s: float = 600) -> int:
        assert self.process is not None

        def there() -> int:
            assert self.process is not None
            now = self.step
            assert self.process.poll() is None or now >= step, f"the command ended early:\n{self.said}"
            return now if now >= step else 0

        return int(wait_for(there, f"step {step} of\n{self.said}", timeout_s, every_s=0.02))

    def wait_for_line(self, text: str, *, since: int | None = None, timeout_s: float = 600) -> int:
        """Until the command says it, from that line or from now on. The highest step that was seen until then."""
        assert self.process is not None
        process, highest, first = self.process, 0, len(self.lines) if since is None else since

        def there() -> bool:
            nonlocal highest
            found, highest = text in "\n".join(self.lines[first:]), max(highest, self.step)
            assert found or process.poll() is None, f"the command ended without {text!r}:\n{self.said}"
            return found

        wait_for(there, f"a line with {text!r}", timeout_s)
        return highest

    def wait(self, *, code: int = 0, timeout_s: float = 600) -> str:
        """Until the command has ended; nothing of it is left running then, neither here nor on the cluster."""
        assert self.process is not None
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the command did not end in {timeout_s:.0f} s:\n{self.said}") from None
        self._end_reading()
        assert self.process.returncode == code, f"exit code {self.process.returncode}\n{self.said}"
        assert "Traceback" not in self.said, self.said
        wait_for(lambda: not self.left_behind, f"processes are left: {self.left_behind}", 60)
        return self.said

    @property
    def left_behind(self) -> list[str]:
        ours = in_sessions(self.sessions)
        if not self.cluster.head.box:  # pids in a box are its own
            for worker in self.workers:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(worker.pid)
                    if "Train" in process.name() + " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                        ours.append(process)
        return [f"{process.pid} {' '.join(process.cmdline())[:100]}" for process in ours]

    def kill(self, signum: signal.Signals) -> None:
        """The command, not its workers."""
        assert self.process is not None
        self.process.send_signal(signum)

    def close(self) -> None:
        kill_at_once(in_sessions(self.sessions))
        if self.process:
            self.process.wait(30)
            self._end_reading()

    def _end_reading(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self._reader.join(30)
        self.process.stdout.close()


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(read_events(folder))
    except OSError:  # the worker has just gone, and its folder with it
        return []


class Disturbed:
    """One fault of a run, measured from its making."""

    def __init__(self, run: RayRun) -> None:
        self.run, self.made, self.at, self._line = run, run.step, time.monotonic(), len(run.lines)
        self._end: int | None = None
        self.exit_code = 0
        self.ended_s: float | None = None
        self.recovery_s: float | None = None

    def ended(self, *, code: int) -> str:
        """Wait for the command; what it said since the fault."""
        self.run.wait(code=code)
        self.exit_code, self.ended_s = code, time.monotonic() - self.at
        self.made = max(self.made, last_step(self.run.run_dir))  # where the command has brought the newest checkpoint here
        return self.said

    def again(self) -> Disturbed:
        """The same command, until it has made a step that had not been made before."""
        self.at = time.monotonic()
        self.run.start()
        return self.recovered()

    def recovered(self) -> Disturbed:
        """By itself, until it has made a step that it had not made before its workers were started again."""
        self.made = max(self.made, self.run.wait_for_line(" started on ", since=self._line))
        started = time.time()

        def new_step() -> bool:
            self.made = max(self.made, self.run.step_between(0.0, started))  # of the checkpoints that a worker looks at
            found = self.run.step_between(started, math.inf) > self.made
            assert found or self.run.is_running, f"the command ended early:\n{self.run.said}"
            return found

        wait_for(new_step, f"a new step of\n{self.run.said}", 600, every_s=0.05)
        self.recovery_s = time.monotonic() - self.at
        self._end = len(self.run.lines)
        return self

    @property
    def said(self) -> str:
        """From the fault until the run had recovered."""
        return "\n".join(self.run.lines[self._line : self._end])

    @property
    def taken_up(self) -> int:
        """The step that the run went on from."""
        found = re.search(r"going on from the checkpoint of step (\d+)", self.said)
        return int(found[1]) if found else 0

    def record(self, fault: Fault, undisturbed: Path) -> None:
        """The row, once the run has come to its end."""
        assert_same(self.run.run_dir, undisturbed)
        same = differing_weights(self.run.run_dir, undisturbed) == []
        lost = self.made - self.taken_up
        fault.record(exit_code=self.exit_code, ended_s=self.ended_s, lost_steps=lost, recovery_s=self.recovery_s, same_weights=same)

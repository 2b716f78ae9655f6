"""From a fault to a row of the table: how a command ended, what was lost, and whether the run became the undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.conftest import SOURCES
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.training_runs import assert_same, differing_weights, last_step

from scanvit.core.events import read_events

INJECTED = Path(__file__).parent / "injected"


class BrokenRun:
    """One run that is broken again and again, and goes on each time: the start of a process is what takes long, so its faults share it.

    ``take_up`` starts a command; ``ended`` or ``went_on`` wait for what a fault comes to; ``record`` writes its row.
    """

    def __init__(self, scanvit: MarkedScanvit, run_dir: Path) -> None:
        self.scanvit, self.run_dir = scanvit, run_dir
        self._said: list[str] = []
        """By each command that has ended."""
        self._faults: dict[str, _Met] = {}
        self.process: subprocess.Popen[str]

    def take_up(self, *arguments: str | Path, **environment: str) -> BrokenRun:
        """Start ``scanvit`` with these arguments; none: ``train --resume``, without restarts."""
        for fault in self._faults.values():
            fault.taken_up_at = fault.taken_up_at or time.time()
        self.process = self.scanvit.start(*(arguments or ("train", "--resume", self.run_dir, "--max-restarts", "0")), **environment)
        return self

    def breaks(self, name: str, how: str, *arguments: str | Path, rank: int | None, at: str = "step", step: int | None = None, code: int) -> BrokenRun:
        """Take it up; one of its processes fails (``inject``), after three steps that no command before has made where no other is given."""
        environment, once = inject(self.scanvit.folder, (how, rank, at, last_step(self.run_dir) + 3 if step is None else step))
        self.take_up(*arguments, **environment).ended(name, code=code, at=once[0])
        return self

    def ended(self, name: str, *, code: int, at: Path | None = None) -> None:
        """Wait for the command and every process of it. ``at``: a file that was made at the fault; now, where there is none."""
        now = time.time()
        self._wait(code)
        since = at.stat().st_mtime if at else now
        assert self.scanvit.wait_until_gone(within_s=600) == []
        self._faults[name] = _Met(exit_code=code, ended_s=time.time() - since, life=len(lives(self.run_dir)), command=len(self._said) - 1)

    def went_on(self, *names: str, since: Sequence[Path] = ()) -> None:
        """The command came to its end by itself, through these faults. ``since``: files that were made at each of them."""
        self._wait(0)
        before = len(lives(self.run_dir)) - len(names) - 1
        for number, (name, once) in enumerate(zip(names, since, strict=True), start=1):
            met = _Met(exit_code=0, ended_s=None, life=before + number, command=len(self._said) - 1, taken_up_at=once.stat().st_mtime)
            self._faults[name] = met

    def move(self, run_dir: Path) -> BrokenRun:
        """It goes on in a copy there."""
        shutil.copytree(self.run_dir, run_dir)
        self.run_dir = run_dir
        return self

    def said(self, name: str) -> str:
        """By the command that met the fault."""
        return self._said[self._faults[name].command]

    def said_after(self, name: str) -> str:
        """By the command that took the run up."""
        return self._said[self._faults[name].command + 1]

    def record(self, name: str, fault: Fault, undisturbed: Path) -> int:
        """The row, once the run has come to its end. Returns how many steps were lost."""
        met = self._faults[name]
        assert_same(self.run_dir, undisturbed)
        life, same = lives(self.run_dir)[met.life], differing_weights(self.run_dir, undisturbed) == []
        recovery_s = life.new_at - met.taken_up_at
        fault.record(exit_code=met.exit_code, ended_s=met.ended_s, lost_steps=life.lost_steps, recovery_s=recovery_s, same_weights=same)
        return life.lost_steps

    def _wait(self, code: int) -> None:
        out, err = self.process.communicate(timeout=600)
        assert self.process.returncode == code, f"exit code {self.process.returncode}\n{out}\n{err}"
        self._said.append(out + err)


@dataclass(kw_only=True)
class _Met:
    exit_code: int
    ended_s: float | None
    life: int
    """Which of the run's lives came after it."""
    command: int
    """Which command met it."""
    taken_up_at: float = 0.0
    """By the command after it, Unix time."""


@dataclass(frozen=True, kw_only=True)
class Life:
    lost_steps: int
    new_at: float
    """When the first step was made that had not been made before; the end of the life where there was none left. Unix time."""


def lives(run_dir: Path) -> list[Life]:
    """What the events tell of each time that the run was started or taken up."""
    events = list(read_events(run_dir))
    starts = [index for index, event in enumerate(events) if event["kind"] in ("start", "resume")]
    return [_life(events[:start], events[start:end]) for start, end in zip(starts, [*starts[1:], len(events)], strict=True)]


def _life(before: list[dict[str, Any]], events: list[dict[str, Any]]) -> Life:
    made = max((event["step"] for event in before if event["kind"] == "metrics"), default=0)
    steps = [event for event in events if "train_loss_step" in event["values"]]
    new = next((event for event in events if event["step"] > made), events[-1])
    return Life(lost_steps=made - (steps[0]["step"] - 1) if steps else 0, new_at=new["time"])


def inject(folder: Path, *faults: tuple[str, int | None, str, int]) -> tuple[dict[str, str], list[Path]]:
    """Environment variables that make processes of a run fail once each, and the files that are made when they do. ``faults``: how, rank, at, step
    (``injected/sitecustomize.py``)."""
    once = [folder / f"injected-{uuid.uuid4().hex[:8]}" for _ in faults]
    described = [{"how": how, "rank": rank, "at": at, "step": step, "once": str(file)} for (how, rank, at, step), file in zip(faults, once, strict=True)]
    return {"SCANVIT_TEST_FAULTS": json.dumps(described), "PYTHONPATH": f"{SOURCES}{os.pathsep}{INJECTED}"}, once


def truncate(path: Path) -> None:
    """In place, as a failing disk does it: whatever shares these bytes is damaged too."""
    os.truncate(path, path.stat().st_size - 1000)


def flip_a_bit(path: Path) -> None:
    """In place."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))

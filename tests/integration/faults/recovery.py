"""From a fault to a row of the table: how a command ended, what was lost, and whether the run became the undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.conftest import SOURCES
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.training_runs import assert_same, differing_weights, last_step

from scanvit.core.events import read_events

INJECTED = Path(__file__).parent / "injected"


class Disturbance:
    """Make it when the fault has happened or is about to; ``ended`` and ``resume``, or ``went_on``, measure; ``record`` writes the row."""

    def __init__(self, scanvit: MarkedScanvit, run_dir: Path, process: subprocess.Popen[str]) -> None:
        self.scanvit, self.run_dir, self.process = scanvit, run_dir, process
        self.at = time.time()
        self.figures: dict[str, Any] = {}

    def ended(self, *, code: int, within_s: float = 180) -> str:
        """Wait for the command and for every process that it started; return what it said."""
        said = self._wait(code, within_s)
        assert self.scanvit.wait_until_gone(within_s=within_s) == []
        self.figures |= {"exit_code": code, "ended_s": time.time() - self.at}
        return said

    def resume(self, undisturbed: Path, *, run_dir: Path | None = None) -> str:
        """``scanvit train --resume`` to the end, with the weights of ``undisturbed``; return what it said."""
        self.run_dir = run_dir or self.run_dir
        self.at = time.time()
        self.process = self.scanvit.start("train", "--resume", self.run_dir)
        said = self._wait(0, 300)
        self._compare(undisturbed)
        return said

    def went_on(self, undisturbed: Path, *, since: Path | None = None) -> str:
        """The command came to its end by itself. ``since``: a file that was made at the fault."""
        said = self._wait(0, 300)
        if since is not None:
            self.at = since.stat().st_mtime
        self.figures |= {"exit_code": 0, "ended_s": None}
        self._compare(undisturbed)
        return said

    def record(self, fault: Fault) -> None:
        fault.record(**self.figures)

    def _wait(self, code: int, within_s: float) -> str:
        out, err = self.process.communicate(timeout=within_s)
        assert self.process.returncode == code, f"exit code {self.process.returncode}\n{out}\n{err}"
        return out + err

    def _compare(self, undisturbed: Path) -> None:
        life = second_life(self.run_dir)
        assert_same(self.run_dir, undisturbed)
        self.figures |= {"lost_steps": life.lost_steps, "recovery_s": life.new_at - self.at, "same_weights": differing_weights(self.run_dir, undisturbed) == []}


@dataclass(frozen=True, kw_only=True)
class SecondLife:
    lost_steps: int
    new_at: float
    """When the first step was made that had not been made before; the end of the run where there was none left. Unix time."""


def second_life(run_dir: Path) -> SecondLife:
    """What the events tell of the last time that the run was taken up."""
    events = list(read_events(run_dir))
    taken_up = max(index for index, event in enumerate(events) if event["kind"] in ("start", "resume"))
    made = max((event["step"] for event in events[:taken_up] if event["kind"] == "metrics"), default=0)
    after = [event for event in events[taken_up:] if "train_loss_step" in event["values"]]
    first_new = next((event for event in events[taken_up:] if event["step"] > made), events[-1])
    return SecondLife(lost_steps=made - (after[0]["step"] - 1 if after else last_step(run_dir)), new_at=first_new["time"])


def inject(folder: Path, *, rank: int, at: str, step: int, how: str) -> tuple[dict[str, str], Path]:
    """Environment variables that make one process of a run fail there, once; and the file that is made when it does."""
    once = folder / "injected"
    fault = {"rank": rank, "at": at, "step": step, "how": how, "once": str(once)}
    return {"SCANVIT_TEST_FAULT": json.dumps(fault), "PYTHONPATH": f"{SOURCES}{os.pathsep}{INJECTED}"}, once

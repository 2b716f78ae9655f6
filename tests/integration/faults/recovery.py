"""From a fault to a row: how a command ended, what was lost, and whether the resumed run is the undisturbed one."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.training_runs import assert_same, differing_weights, last_step, saved_step, wait_for_step


class Disturbance:
    """Make it at the moment of the fault; then ``ended`` and ``resume`` measure, and ``record`` writes the row."""

    def __init__(self, scanvit: MarkedScanvit, run_dir: Path, process: subprocess.Popen[str]) -> None:
        self.scanvit, self.run_dir, self.process = scanvit, run_dir, process
        self.at = time.monotonic()
        self.figures: dict[str, Any] = {}

    def ended(self, *, code: int, within_s: float = 120) -> str:
        """Wait for the command and for every process that it started; return what it said."""
        out, err = self.process.communicate(timeout=within_s)
        assert self.process.returncode == code, f"exit code {self.process.returncode}\n{out}\n{err}"
        assert self.scanvit.wait_until_gone(within_s=within_s) == []
        self.made = last_step(self.run_dir)
        self.figures |= {"exit_code": code, "ended_s": time.monotonic() - self.at}
        return out + err

    def resume(self, undisturbed: Path, *, run_dir: Path | None = None, saved: int | None = None) -> str:
        """``scanvit train --resume`` to the end, with the weights of ``undisturbed``. ``saved``: the step it starts from, else the newest checkpoint's."""
        run_dir = run_dir or self.run_dir
        lost, start = self.made - (saved_step(run_dir) if saved is None else saved), time.monotonic()
        process = self.scanvit.start("train", "--resume", run_dir)
        wait_for_step(run_dir, self.made + 1, process)
        recovery_s = time.monotonic() - start
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert_same(run_dir, undisturbed)
        self.figures |= {"lost_steps": lost, "recovery_s": recovery_s, "same_weights": differing_weights(run_dir, undisturbed) == []}
        return out + err

    def record(self, fault: Fault) -> None:
        fault.record(**self.figures)

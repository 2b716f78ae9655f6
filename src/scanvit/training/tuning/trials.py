"""The trials under way: a process each, watched through the events that its run writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ...core import errors
from ...core.config import Experiment
from ...core.errors import DataError, PackError, PreemptedError, RunError, RunExistsError, RunMissingError, ScanvitError, StorageError, TrackingError
from ...core.events import FILE_NAME, metric_history, parse_event
from ...core.loading import experiment_to_dict
from ..run_folder import is_being_trained, is_finished

_LAST_WORDS_S = 60.0
"""How long a trial may take to write its checkpoint and end, beside the tracking's ``drain_timeout_s``."""
_RESTARTS = 1
_SURROUNDINGS = {
    kind.exit_code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and (issubclass(kind, DataError | PackError | StorageError) or kind in (RunError, RunMissingError, RunExistsError, TrackingError))
}
"""What no recipe is to blame for, by exit code: the next trial would meet it as well. A process that was lost may have run out of memory."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run's events say of its training so far."""

    epochs: int
    best_epoch: int | None
    value: float | None
    """The metric at the epoch of lowest val_loss, which is that of ``checkpoint.pth``; None where no epoch gave a number."""
    time_s: float

    @classmethod
    def read(cls, run_dir: Path, metric: str) -> Figures:
        history = metric_history(run_dir)
        losses = {epoch: value for epoch, _, value in history.get("val_loss", [])}
        values = {epoch: value for epoch, _, value in history.get(metric, [])}
        spent = [value for _, _, value in history.get("train_time_s", [])]
        best = min(losses, key=lambda epoch: (losses[epoch], epoch), default=None)
        return cls(epochs=max(losses, default=0), best_epoch=best, value=values.get(best) if best is not None else None, time_s=max(spent, default=0.0))


class TrialProcess:
    """A trial's run in a process of its own: what happens to it happens to no other trial."""

    def __init__(self, number: int, experiment: Experiment, *, pack: Path, run_dir: Path) -> None:
        self.number, self.experiment, self.pack, self.run_dir = number, experiment, pack, run_dir
        self.stopped = False
        """Whether it was asked to end early."""
        self.diverged = False
        """Whether an epoch's figure was no number."""
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0

    def start(self) -> None:
        """A trial that a killed search left may still be writing its last checkpoint: wait for it."""
        deadline = time.monotonic() + _LAST_WORDS_S + self.experiment.tracking.drain_timeout_s
        while is_being_trained(self.run_dir) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        package_root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        with open(self.run_dir.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scanvit.training.tuning.trial_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
            )
        job = {"experiment": experiment_to_dict(self.experiment), "pack": str(self.pack), "run_dir": str(self.run_dir), "max_restarts": _RESTARTS}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code tells more
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        """Whether nothing works at it: its process has ended, or it needed none, as its training had come to its end before."""
        return self._process is None or self._process.poll() is not None

    @property
    def finished(self) -> bool:
        """Whether the training came to its end, now or before."""
        return is_finished(self.run_dir)

    def new_epochs(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) of the epochs that ended since the last call; NaN for one that gave no number."""
        found = []
        with contextlib.suppress(FileNotFoundError), open(self.run_dir / FILE_NAME, "rb") as file:
            file.seek(self._offset)
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                event = parse_event(line)
                if event and event["kind"] == "metrics" and metric in event["values"] and "train_loss" in event["values"]:
                    value = event["values"][metric]
                    self.diverged = self.diverged or value is None
                    found.append((int(event["epoch"]), float("nan") if value is None else float(value)))
        return found

    def stop(self) -> None:
        """Ask for a checkpoint at the next step's end."""
        if self._process and not self.ended:  # an ended one has nothing to stop
            self.stopped = True
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended; kills it where it does not."""
        if self._process:
            try:
                self._process.wait(_LAST_WORDS_S + self.experiment.tracking.drain_timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def error(self) -> str | None:
        """Why it failed, as a sentence; None where it came to its end or was stopped by a signal."""
        if self._process is None:
            return None
        code = self._process.returncode
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").strip().splitlines()
        if code in (0, PreemptedError.exit_code, -signal.SIGTERM):
            return None
        with contextlib.suppress(ValueError, IndexError):
            return str(json.loads(said[-1]))
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"Its process {cause}; see {self.run_dir.with_suffix('.log')}."

    @property
    def fault_of_surroundings(self) -> type[ScanvitError] | None:
        """The kind of what ended it, where its recipe is not to blame."""
        return _SURROUNDINGS.get(self._process.returncode) if self._process else None

"""The process that copies events to MLflow while a run trains.

A process, not a thread: importing and running MLflow's client inside the training would take the interpreter from the training's steps for
seconds. It ends with the training, however that ends, because the training holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..core.config import TrackingConfig
from ..core.errors import ScanvitError
from ..storage.mlflow_client import explain, make_local_store
from .run_folder import SETTINGS, is_being_trained, load_tracking
from .shipper import Shipper

log = logging.getLogger(__name__)

_POLL_S = 1.0
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_TELL_AFTER = 2


class ShippingProcess:
    """Starts and stops the copying of one run."""

    def __init__(self, run_dir: Path, settings: TrackingConfig, *, once: bool = False) -> None:
        """``once``: it is enough that everything arrives, whether or not somebody trains the run."""
        self.run_dir, self.settings, self.once = run_dir, settings, once
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "scanvit.training.shipping", str(self.run_dir), *(["once"] if self.once else [])]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path})
        except OSError as error:  # no memory or process left: no reason to end a training
            log.warning("The tracking does not start: %s. The events are kept; send them with: scanvit track sync %s", error.strerror, self.run_dir)
            self._process = None

    def stop(self) -> None:
        """Wait until everything has been sent, for at most ``drain_timeout_s``."""
        if self._process and self._process.poll() is not None:  # somebody ended it, as a machine short of memory does
            self.start()
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        # On a busy machine it may still stand in its first import, where it does not see that the training is gone.
        _stop_yielding(process.pid)
        try:
            process.wait(self.settings.drain_timeout_s + 5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def shipper(self) -> Shipper:
        """How far the copying is, as it was last written down."""
        return Shipper(self.run_dir, self.settings)


def ship_now(run_dir: Path, settings: TrackingConfig) -> bool:
    """Copy what has not been copied yet, for at most ``drain_timeout_s``; whether everything arrived."""
    if not settings.mlflow:
        return True
    process = ShippingProcess(run_dir, settings, once=True)
    process.start()
    process.stop()
    return process.shipper().behind == 0


def main(run_dir: Path, *, once: bool = False) -> int:
    """Copy until the training is gone, then what is left, for at most ``drain_timeout_s``. A run folder that somebody took away ends it, and is not
    made again."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # meant for the training; this process ends when that has ended
        signal.signal(signum, signal.SIG_IGN)
    if not (run_dir / SETTINGS).is_file():
        return 1
    settings = load_tracking(run_dir)
    shipper = Shipper(run_dir, settings)
    training_is_gone = threading.Event()
    threading.Thread(target=_watch, args=(training_is_gone,), daemon=True).start()
    if not once:
        with contextlib.suppress(Exception):  # tried again below
            make_local_store(shipper.target)  # once for a folder of runs, and before giving way: behind a training on all cores it would never be done
        _yield_to_training()
        if training_is_gone.is_set():
            _stop_yielding(os.getpid())
    failures, deadline = 0, None
    while (run_dir / SETTINGS).is_file() and (deadline is None or time.monotonic() < deadline):
        ended = deadline is not None  # before the last look at the events, not after
        try:
            shipper.ship(alive=not ended or is_being_trained(run_dir))
            if ended and (once or shipper.complete):  # else its launcher is still ending the other processes of the run
                return 0
            if failures >= _TELL_AFTER:
                log.warning("Tracking at %s answers again.", shipper.uri)
            failures = 0
        except Exception as error:  # whatever the server or its client library does, try again
            failures += 1
            if failures == _TELL_AFTER:  # one lost connection is no news
                reason = error.message if isinstance(error, ScanvitError) else explain(error)
                log.warning("Tracking at %s does not work: %s. Training goes on; the events are kept.", shipper.uri, reason.rstrip("."))
        wait_s = _RETRY_S[min(failures, len(_RETRY_S)) - 1] if failures else _POLL_S
        if ended:
            time.sleep(min(wait_s, _POLL_S))
        elif training_is_gone.wait(wait_s):
            deadline = time.monotonic() + settings.drain_timeout_s
    return 1


def _yield_to_training() -> None:
    """Run only where a core has nothing else to do. The threads of a training step wait for each other: one that is put aside for a moment
    stops all of them, and a client library that starts up beside them was measured to slow steps tenfold (docs/performance.md)."""
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(19)


def _watch(training_is_gone: threading.Event) -> None:
    """The training's end closes the pipe, however it ends. Somebody waits for this process then: what it is in the middle of has to get on as well."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    training_is_gone.set()
    _stop_yielding(os.getpid())


def _stop_yielding(pid: int) -> None:
    """Nobody trains any longer, and somebody waits, on a machine that may be busy with other work. All threads, as far as they live."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main(Path(sys.argv[1]), once="once" in sys.argv[2:]))

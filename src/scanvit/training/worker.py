"""One process of a run: ``python -m scanvit.training.worker``, started by ``processes`` with a job on its standard input.

It ends with the process that started it, however that ends, because that holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ScanvitError, StalledError

UNEXPECTED = 1
_TRACEBACK_CHARACTERS = 12_000
"""Of its end: a pipe holds 64 KiB without a reader, and a character takes up to four bytes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process has to know beside its environment variables (``core.runtime.World``). Travels as one line of JSON."""

    experiment: dict[str, Any]
    pack: str
    run_dir: str
    show_progress: bool
    verbose: bool
    keep_fds: tuple[int, ...] = ()
    """Open files to hold on to: the run folder's lock."""
    listen_fd: int | None = None
    """Of rank zero: a bound socket, where the others find it."""
    report_fd: int = -1
    """A pipe for the ``Report``."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A process's last word. Travels as JSON."""

    at: float
    """time.monotonic() when it ended: the same clock in all processes of a machine."""
    result: dict[str, Any] | None = None
    """Of ``fit``, where it came to its end."""
    error: str | None = None
    """Name of the exception's class."""
    message: str = ""
    hint: str | None = None
    traceback: str = ""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the launcher hears it and asks for a checkpoint
    job = Job(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_stop_without_launcher, name="launcher-watch", daemon=True).start()
    try:
        report, code = Report(at=time.monotonic(), result=_run(job)), 0
    except Exception as error:
        report, code = _tell(error)
    with contextlib.suppress(OSError):  # nobody may be there to read it
        os.write(job.report_fd, json.dumps(asdict(report)).encode())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)  # a process group whose other processes are gone may wait for them at the interpreter's end


def _run(job: Job) -> dict[str, Any]:
    import logging

    logging.basicConfig(level=logging.DEBUG if job.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("scanvit").setLevel(logging.DEBUG if job.verbose else logging.WARNING)

    from ..core.loading import experiment_from_dict
    from ..core.runtime import World, available_devices
    from ..data.pack import Pack
    from .imports import quick_imports

    with quick_imports():
        from .fit import fit
        from .world import join

    experiment, world = experiment_from_dict(job.experiment), World.from_environment()
    accelerator, _ = available_devices(experiment.trainer.accelerator)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    join(world, accelerator=accelerator, timeout_s=experiment.trainer.timeout_s, address=address, listen_fd=job.listen_fd)
    result = fit(experiment, Pack.open(job.pack), Path(job.run_dir), show_progress=job.show_progress)
    return asdict(result) | {"run_dir": str(result.run_dir)}


def _tell(error: Exception) -> tuple[Report, int]:
    """The report of an error, and the exit code."""
    at, trace = time.monotonic(), "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    error = _as_stalled(error)
    hint, code = (error.hint, error.exit_code) if isinstance(error, ScanvitError) else (None, UNEXPECTED)
    return Report(at=at, error=type(error).__name__, message=str(error)[:1000], hint=hint, traceback=trace), code


def _as_stalled(error: Exception) -> Exception:
    """A collective operation that nobody else took part in comes as a RuntimeError with the time-out in its text."""
    text = str(error)
    is_collective = isinstance(error, RuntimeError) and ("gloo" in text or type(error).__name__.startswith("Dist"))  # torch.distributed.DistError
    if is_collective and ("timed out" in text.lower() or "timeout" in text.lower()):
        return StalledError(text.splitlines()[0])
    return error


def _stop_without_launcher() -> None:
    """The launcher's death closes the pipe: write a checkpoint at the next step and end, as after SIGTERM."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()

"""One trial: a process that brings one run folder to its end, as ``scanvit train`` does. Started by ``trials`` with a line of JSON on its standard input.

It ends with the search that started it, however that ends, because that holds the other end of its standard input.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from ...core.errors import ScanvitError, StorageError
from ..worker import UNEXPECTED, _stop_without_launcher


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the search hears it and asks for a checkpoint
    job: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_without_launcher, name="search-watch", daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        _run(job)
    except ScanvitError as error:
        _tell(error.message)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _tell(f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}")
        is_disk = isinstance(error, OSError) and error.errno != errno.ENOMEM
        return StorageError.exit_code if is_disk else UNEXPECTED
    return 0


def _run(job: dict[str, Any]) -> None:
    from ...core.loading import experiment_from_dict
    from ...data.pack import Pack
    from ..launch import launch

    launch(experiment_from_dict(job["experiment"]), Pack.open(job["pack"]), Path(job["run_dir"]), max_restarts=job["max_restarts"])


def _tell(sentence: str) -> None:
    try:
        print(json.dumps(sentence[:1000]), flush=True)  # noqa: T201 the search reads it
    except BrokenPipeError:  # the search was killed; its next one reads the run's own events
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of the same at its end


if __name__ == "__main__":
    sys.exit(main())

"""The command line as a user has it: in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"


class Scanvit:
    """Starts ``scanvit`` commands. Whatever is still running at a test's end is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *args: str | Path, **environment: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "scanvit", *map(str, args)],
            env=clean | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "COLUMNS": "160"} | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Kill what is still running, with all that it started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def __call__(self, *args: str | Path, code: int = 0, **environment: str) -> str:
        """Run to the end and return stdout and stderr; fails the test on another exit code or a traceback."""
        process = self.start(*args, **environment)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out + err


@pytest.fixture
def scanvit(tmp_path: Path) -> Iterator[Scanvit]:
    runner = Scanvit(tmp_path)
    yield runner
    runner.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 300 kB; skips where it cannot be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine refuses to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)

"""Which of several ended processes made the others end, and what is told of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scanvit.core.config import TrainerConfig
from scanvit.core.errors import ConfigError, NoSpaceError, PreemptedError, ProcessLostError, StalledError
from scanvit.training import processes
from scanvit.training.launch import _this_node
from scanvit.training.processes import Node, _as_error, _cause, _Process
from scanvit.training.worker import Report, _tell


def ended(rank: int, code: int, *, at: float = 0.0, error: str | None = None, message: str = "", hint: str | None = None, killed: bool = False) -> _Process:
    popen = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    popen.wait()
    popen.returncode = code
    report = Report(at=at, error=error, message=message, hint=hint, traceback="Traceback: here") if error else None
    return _Process(rank=rank, popen=popen, report_fd=-1, report=report, ended_at=at, killed=killed)


def told(*ones: _Process, run_dir: Path = Path("run")) -> Exception:
    cause = _cause(list(ones))
    assert cause is not None
    return _as_error(cause, list(ones), total=len(ones), run_dir=run_dir)


def test_a_signal_from_outside_comes_before_what_the_others_say_of_it() -> None:
    error = told(ended(0, 1, at=1.0, error="RuntimeError", message="Connection closed by peer"), ended(1, -signal.SIGKILL, at=2.0))
    assert isinstance(error, ProcessLostError)
    assert "Process 1 of 2 was ended by SIGKILL" in str(error)


def test_of_errors_the_first_one_counts_with_its_hint() -> None:
    error = told(ended(0, 61, at=1.0, error="NoSpaceError", message="No space", hint="Free some"), ended(1, 1, at=2.0, error="RuntimeError", message="gone"))
    assert isinstance(error, NoSpaceError)
    assert (error.message, error.hint) == ("No space", "Free some")


def test_a_stalled_process_is_named() -> None:
    error = told(ended(0, 44, at=1.0, error="StalledError", message="Timed out"), ended(1, -signal.SIGKILL, at=9.0, killed=True))
    assert isinstance(error, StalledError)
    assert "Process 1 of 2 did not take part" in str(error)


def test_an_unknown_exception_keeps_its_traceback() -> None:
    error = told(ended(0, 1, at=2.0, error="RuntimeError", message="gone"), ended(1, 1, at=1.0, error="ValueError", message="wrong"))
    assert type(error) is RuntimeError
    assert "Process 1 of 2 failed: ValueError: wrong" in str(error)
    assert error.__notes__ == ["Traceback: here"]


def test_sigterm_outside_of_the_steps_is_no_loss_and_success_has_no_cause(tmp_path: Path) -> None:
    processes = ended(0, -signal.SIGTERM), ended(1, -signal.SIGTERM)
    before = told(*processes, run_dir=tmp_path)
    assert isinstance(before, PreemptedError)
    assert before.message == "Training was asked to stop before its first checkpoint."
    assert before.hint == f"Go on with: scanvit train --resume {tmp_path}"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert "its newest checkpoint holds" in str(told(*processes, run_dir=tmp_path))
    assert _cause([ended(0, 0), ended(1, 0)]) is None


@pytest.mark.parametrize(("error", "name", "code"), [(NoSpaceError("full", hint="x"), "NoSpaceError", 61), (ValueError("v"), "ValueError", 1)])
def test_a_process_reports_its_error(error: Exception, name: str, code: int) -> None:
    report, exit_code = _tell(error)
    assert (report.error, exit_code) == (name, code)


def test_a_timed_out_collective_is_a_stalled_process() -> None:
    report, code = _tell(RuntimeError("[gloo] Timed out waiting 15000ms for recv operation to complete"))
    assert (report.error, code) == ("StalledError", 44)
    assert _tell(RuntimeError("Connection closed by peer"))[0].error == "RuntimeError"


def test_where_this_machine_stands() -> None:
    assert _this_node(TrainerConfig(devices=2), {"NODE_RANK": "7"}) == Node(processes=2)
    place = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert _this_node(TrainerConfig(devices=2, num_nodes=2), place) == Node(processes=2, nodes=2, rank=1, address="10.0.0.1", port=29500)
    for missing in place:
        with pytest.raises(ConfigError, match=missing):
            _this_node(TrainerConfig(devices=2, num_nodes=2), {k: v for k, v in place.items() if k != missing})


def test_the_launcher_imports_nothing_heavy() -> None:
    """A new start after a fault would wait for it."""
    code = f"import sys, {processes.__name__}, scanvit.training.launch; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    source = Path(processes.__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})

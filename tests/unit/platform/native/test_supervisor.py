"""The supervisor over small programs of its own, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scanvit.platform.native.guard import holder
from scanvit.platform.native.leftovers import end_leftovers, leftovers
from scanvit.platform.native.programs import MARKER

SOURCES = Path(__file__).resolve().parents[3] / "src"

# Each program is a shell line; a parent with a child of its own, which ignores SIGTERM, is the hardest to end.
CODE = """
import json, os, sys
from pathlib import Path
from scanvit.platform.native import leftovers, supervisor
from scanvit.platform.native.guard import guarded
from scanvit.platform.native.programs import MARKER, Program
supervisor._PAUSES_S = (0.05,) * 5
supervisor._QUICK_S = 0.5
supervisor._TICK_S = 0.02
supervisor._GROUP_S = supervisor.PATIENCE_S = leftovers.PATIENCE_S = 0.2
folder = Path(sys.argv[1])
def plan():
    lines = json.loads((folder / "plan.json").read_text())
    environment = {"PATH": os.environ["PATH"], MARKER: str(folder)}
    return [Program(name=n, command=("sh", "-c", line), environment=environment, after=tuple(after)) for n, (line, after) in lines.items()]
guarded(folder / supervisor.LOCK_FILE, lambda: supervisor.Supervisor(folder, plan).run())
"""


class Supervised:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("run", "logs"):
            (folder / name).mkdir()

    def plan(self, **lines: str | tuple[str, list[str]]) -> None:
        plan = {name: line if isinstance(line, tuple) else (line, []) for name, line in lines.items()}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(SOURCES), MARKER: str(self.folder)}
        self.process = subprocess.Popen([sys.executable, "-c", CODE, self.folder], env=environment, start_new_session=True)
        self.until(lambda: bool(self.programs()))
        return self.process

    def programs(self) -> dict[str, dict[str, object]]:
        try:
            return json.loads((self.folder / "run" / "supervisor.json").read_text())["programs"]
        except FileNotFoundError:
            return {}

    def state(self, name: str) -> object:
        return self.programs().get(name, {}).get("state")

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, (self.programs(), [p.cmdline() for p in leftovers(self.folder)])
            time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervised]:
    if sys.platform != "linux":
        pytest.skip("orphans are inherited on Linux alone")
    monkeypatch.setattr("scanvit.platform.native.leftovers.PATIENCE_S", 0.2)
    supervised = Supervised(tmp_path)
    yield supervised
    end_leftovers(tmp_path)
    supervised.process.wait()


STUBBORN = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & while :; do sleep 0.1; done"


def test_programs_start_in_order_and_come_back_when_they_die(supervised: Supervised) -> None:
    supervised.plan(first="sleep 1000", second=("test -e ready || { touch ready; echo first; }; sleep 1000", ["first"]))
    supervised.start()
    supervised.until(lambda: supervised.state("second") == "ready")
    pid = supervised.programs()["first"]["pid"]
    os.kill(int(str(pid)), signal.SIGKILL)
    supervised.until(lambda: supervised.programs()["first"]["restarts"] == 1 and supervised.state("first") == "ready")
    assert supervised.programs()["first"]["pid"] != pid
    assert supervised.programs()["second"]["restarts"] == 0


def test_what_dies_again_and_again_is_given_up_and_tried_again_when_asked(supervised: Supervised) -> None:
    supervised.plan(broken="echo no; exit 7", whole="sleep 1000")
    process = supervised.start()
    supervised.until(lambda: supervised.state("broken") == "failed")
    assert supervised.programs()["broken"]["exit_code"] == 7
    assert (supervised.folder / "logs" / "broken.log").read_text() == "no\n" * 6
    whole = supervised.programs()["whole"]["pid"]
    supervised.plan(broken="sleep 1000", whole="sleep 1000")
    process.send_signal(signal.SIGHUP)
    supervised.until(lambda: supervised.state("broken") == "ready")
    assert supervised.programs()["whole"]["pid"] == whole, "what has not changed goes on"


def test_a_program_that_cannot_be_started_does_not_end_the_others(supervised: Supervised) -> None:
    supervised.plan(whole="sleep 1000", late=("sleep 1000", ["whole"]))
    supervised.start()
    supervised.until(lambda: supervised.state("late") == "ready")
    assert holder(supervised.folder / "run" / "supervisor.lock") == supervised.process.pid


@pytest.mark.parametrize("who", ["guard by SIGTERM", "guard by SIGKILL", "supervisor by SIGKILL", "both by SIGKILL"])
def test_whoever_is_killed_no_process_is_left(supervised: Supervised, who: str) -> None:
    supervised.plan(stubborn=STUBBORN, plain="sleep 1000")
    process = supervised.start()
    supervised.until(lambda: supervised.state("stubborn") == "ready")
    supervised.until(lambda: len(leftovers(supervised.folder)) >= 5)
    guard = psutil.Process(process.pid)
    (supervisor,) = [child for child in guard.children() if child.cmdline() == guard.cmdline()]
    if who == "guard by SIGTERM":
        guard.terminate()
    elif who == "both by SIGKILL":  # then the kernel tells the programs, and those that do not listen are found by the next command
        guard.suspend()
        supervisor.kill()
        guard.kill()
        supervised.until(lambda: holder(supervised.folder / "run" / "supervisor.lock") is None)
        assert end_leftovers(supervised.folder)
    else:
        (guard if "guard" in who else supervisor).kill()
    supervised.until(lambda: not leftovers(supervised.folder))
    supervised.until(lambda: holder(supervised.folder / "run" / "supervisor.lock") is None)  # its process goes a moment after the last program


def test_a_second_supervisor_is_refused(supervised: Supervised) -> None:
    supervised.plan(plain="sleep 1000")
    supervised.start()
    second = subprocess.run([sys.executable, "-c", CODE, supervised.folder], env=os.environ | {"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True)
    assert (second.returncode, second.stderr) == (1, "Another supervisor runs already.\n")

"""What the tests that break a run on purpose share: marked processes, and the rows of the table in docs/reliability.md.

A test of a fault carries ``@pytest.mark.fault(engine, fault, where)`` (a ``pytest.param`` may carry it) and calls ``fault.record(...)``. Tests
skip inside, never at import: the marks are the list of rows that the document must have (tests/meta/test_faults.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.conftest import Scanvit
from tests.integration.faults.table import Row, about_this_machine, load_rows, merge, write
from tests.integration.training_runs import arguments

MARK = "SCANVIT_TEST_MARK"
"""In the environment of every process that a fault test starts, and of whatever those start."""
_KNOWN = pytest.StashKey[list[tuple[str, str, str]]]()
_RECORDED = pytest.StashKey[list[Row]]()


class MarkedScanvit(Scanvit):
    """``scanvit`` commands whose processes, children of children included, can be found again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mark = uuid.uuid4().hex

    def start(self, *args: str | Path, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        return super().start(*args, prefix=prefix, **{MARK: self.mark} | environment)

    def alive(self) -> list[psutil.Process]:
        """Processes of this test that have not ended (a zombie has), oldest first."""
        return sorted(filter(self._is_mine, psutil.process_iter()), key=lambda process: process.create_time())

    def wait_until_gone(self, *, within_s: float = 60) -> list[str]:
        """The command lines of those that are still there after that time."""
        deadline = time.monotonic() + within_s
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [" ".join(process.cmdline())[:200] for process in left]

    def close(self) -> None:
        for process in self.alive():
            process.kill()
        super().close()

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False


class Fault:
    """The row of the running test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def record(self, *, exit_code: int, ended_s: float | None, lost_steps: int, recovery_s: float | None, same_weights: bool) -> None:
        """See ``table.Row``. A test records once, when all its assertions hold."""
        mark = self._request.node.get_closest_marker("fault")
        assert mark is not None, "a test that records needs @pytest.mark.fault(engine, fault, where)"
        engine, name, where = mark.args
        times = {"ended_s": None if ended_s is None else round(ended_s, 1), "recovery_s": None if recovery_s is None else round(recovery_s, 1)}
        row = Row(engine=engine, fault=name, where=where, exit_code=exit_code, lost_steps=lost_steps, same_weights=same_weights, **times)
        self._request.node.stash[_RECORDED] = [row]
        self._request.session.stash.setdefault(_RECORDED, []).append(row)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    return Fault(request)


@pytest.fixture
def scanvit(tmp_path: Path) -> Iterator[MarkedScanvit]:
    """Fails a test that leaves a process behind."""
    runner = MarkedScanvit(tmp_path)
    yield runner
    left = runner.wait_until_gone(within_s=60)
    runner.close()
    assert not left, "processes were left behind"


@pytest.fixture(scope="session")
def long_run(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs on Ray are compared with: the same in two processes without Ray, undisturbed. The engine makes no difference to the weights."""
    from tests.integration.faults.ray_runs import LONG  # which imports this

    folder = tmp_path_factory.mktemp("long")
    Scanvit(folder)(*arguments(small_pack, folder / "run", *LONG, "trainer.devices=2"))
    return folder / "run"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    result = yield
    if pyfuncitem.get_closest_marker("fault") and _RECORDED not in pyfuncitem.stash:
        pytest.fail("this test of a fault recorded no row")
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    marks = [mark for item in items if (mark := item.get_closest_marker("fault"))]
    session.stash[_KNOWN] = [mark.args for mark in marks]
    if target := os.environ.get("SCANVIT_LIST_FAULTS"):
        Path(target).write_text(json.dumps(session.stash[_KNOWN]), encoding="utf-8")


def pytest_sessionfinish(session: pytest.Session) -> None:
    new = session.stash.get(_RECORDED, [])
    if os.environ.get("SCANVIT_RECORD_FAULTS") and new:
        # Where one file or engine was run alone, the rows of the others stay; tests/meta tells of rows whose test is gone.
        write(merge(load_rows(), new), about_this_machine())

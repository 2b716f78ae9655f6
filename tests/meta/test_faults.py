"""The table of faults in docs/reliability.md has the rows of the tests. Those on Ray clusters take long, and need not all have been recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.faults.table import BEGIN, DOCUMENT, END, ENGINES, RESULTS, Row, load_rows, merge, render


def test_the_table_has_the_rows_of_the_tests(repository: Path, tmp_path: Path) -> None:
    listing = tmp_path / "faults.json"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "soak or not soak", "tests/integration/faults"]
    done = subprocess.run(command, cwd=repository, env=os.environ | {"SCANVIT_LIST_FAULTS": str(listing)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    declared = [tuple(key) for key in json.loads(listing.read_text(encoding="utf-8"))]
    assert len(declared) == len(set(declared)), "two tests of the same fault"
    assert {engine for engine, _, _ in declared} <= set(ENGINES)
    recorded = [row.key for row in load_rows()]
    how = f"SCANVIT_RECORD_FAULTS=1 python -m pytest tests/integration/faults writes {RESULTS.name}"
    assert set(recorded) <= set(declared), f"take the rows whose test is gone out of {RESULTS.name}"
    assert {key for key in declared if key[0] != "Ray"} <= set(recorded), how


def test_the_document_shows_the_recorded_rows() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = text.split(BEGIN)[1].split(END)[0].strip()
    assert shown == render(load_rows()), "python -m tests.integration.faults.table writes it"


def test_every_recorded_run_ended_with_the_same_weights() -> None:
    assert [row.key for row in load_rows() if not row.same_weights] == []


def test_new_rows_take_the_place_of_old_ones() -> None:
    def row(engine: str, fault: str, lost_steps: int) -> Row:
        return Row(engine=engine, fault=fault, where="", exit_code=0, ended_s=None, lost_steps=lost_steps, recovery_s=None, same_weights=True)

    old = [row("DDP", "a", 1), row("DDP", "b", 1), row("Ray", "c", 1)]
    new = [row("DDP", "d", 1), row("DDP", "a", 2)]
    assert merge(old, new) == [row("DDP", "a", 2), row("DDP", "b", 1), row("DDP", "d", 1), row("Ray", "c", 1)]

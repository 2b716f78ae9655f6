"""The compiled loops of ``data.jpeg`` ask no one whether a byte is there. Here they are compiled so that every access is checked, and for a processor
without wide vectors: nothing outside the arrays is touched, whatever the file, and the pixels are the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.conftest import REPOSITORY
from tests.unit.data.jpeg.samples import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def python(*arguments: str, **environment: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_access_outside_the_arrays_in_2000_damaged_files() -> None:
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/data/jpeg", NUMBA_BOUNDSCHECK="1", SCANVIT_FUZZ_CASES="2000")
    assert " passed" in said


@pytest.mark.parametrize("environment", [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_CPU_NAME": "generic"}], ids=str)
def test_the_pixels_are_those_of_other_processors(environment: dict[str, str]) -> None:
    assert python("-c", "from tests.unit.data.jpeg.samples import digest; print(digest(400))", **environment).strip() == digest(400)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scanvit.storage import scratch
from scanvit.storage.scratch import Spool, pieces_of, scratch_in, scratch_zeros, spooled

LONG = 3 << 20


def test_what_was_written_is_read_short_or_long() -> None:
    for count in (0, 1, 1000, LONG // 8):
        spool = Spool()
        for piece in pieces_of(count, 999):
            spool.write(np.arange(piece.start, piece.stop))
        np.testing.assert_array_equal(spool.array(np.int64), np.arange(count))
        spool.write(np.array([7, 8]))
        np.testing.assert_array_equal(spool.array(np.int64)[count:], [7, 8])
        assert not spool.array(np.int64).flags.writeable


def test_rows_of_several_values() -> None:
    values = np.random.default_rng(0).integers(0, 256, (100_000, 32), np.uint8)
    np.testing.assert_array_equal(spooled((values[piece] for piece in pieces_of(len(values))), np.uint8, 32), values)


def test_zeros_can_be_written() -> None:
    for length in (10, LONG):
        array = scratch_zeros(length, np.int16, 2)
        assert array.shape == (length, 2)
        assert not array.any()
        array[-1] = 5
        assert array.sum() == 10


def test_the_files_have_no_name_and_lie_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    made = scratch.tempfile.TemporaryFile
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda dir, **rest: asked.append(dir) or made(dir=dir, **rest))
    with scratch_in(tmp_path):
        held = scratch_zeros(LONG, np.uint8)
        spool = Spool()
        spool.write(bytes(LONG))
        assert asked == [tmp_path, tmp_path]
        assert not list(tmp_path.iterdir())
    assert held.size == spool.array(np.uint8).size == LONG
    scratch_zeros(LONG, np.uint8)
    assert asked[2] is None


def test_slices_cover_everything_once() -> None:
    assert list(pieces_of(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert not list(pieces_of(0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process holds itself")
def test_what_is_in_scratch_files_is_not_held(tmp_path: Path) -> None:
    program = """
import numpy as np
from scanvit.storage.scratch import Spool, scratch_zeros
def held(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = held()
spool = Spool()
for _ in range(64): spool.write(np.ones(1 << 20, np.uint8))
zeros = scratch_zeros(64 << 20, np.uint8)
zeros[:] = 1
assert spool.array(np.uint8).sum() == zeros.sum()
print(held() - before)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 16 * 1024, "kB, of 128 MiB"

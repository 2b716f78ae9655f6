"""What a worker does before it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scanvit.cluster import worker
from scanvit.cluster.board import BoardProgress
from scanvit.cluster.packs import PackSource
from scanvit.cluster.storage import open_storage
from scanvit.core.config import Experiment
from scanvit.core.errors import PackCorruptError


@pytest.mark.parametrize("reads", [True, False], ids=["one of the node", "the others"])
def test_a_flipped_bit_of_the_pack_ends_the_run_before_a_step(small_pack: Path, tmp_path: Path, *, reads: bool) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(small_pack, pack)
    content = bytearray((pack / "train.npy").read_bytes())
    content[-1] ^= 1
    (pack / "train.npy").write_bytes(content)
    (tmp_path / "run").mkdir()
    assignment = worker.Assignment(
        experiment=Experiment(),
        name="run",
        storage=open_storage(str(tmp_path / "storage"), {}).below("run-1"),
        pack=PackSource(path=str(pack)),
        environment={},
        tracking={},
        ships=False,
        threads=1,
    )
    _, fault = worker._prepare(assignment, tmp_path / "run", BoardProgress(None, rank=0), reads=reads)
    assert (fault is None) is not reads, "the others hear of it from the one that reads"
    if fault is not None:
        assert isinstance(fault, PackCorruptError)
        assert "train.npy was changed" in fault.message

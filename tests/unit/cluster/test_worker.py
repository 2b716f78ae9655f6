"""What a worker does before it trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from scanvit.cluster import worker
from scanvit.cluster.board import BoardProgress
from scanvit.cluster.packs import PackSource
from scanvit.cluster.storage import open_storage
from scanvit.core.config import Experiment
from scanvit.core.errors import ConfigError, DivergedError, EmptyClassError, PackCorruptError, ScanvitError
from scanvit.data.pack import Pack


def assigned(pack: Path, folder: Path) -> worker.Assignment:
    return worker.Assignment(
        experiment=Experiment(),
        name="run",
        storage=open_storage(str(folder / "storage"), {}).below("run-1"),
        pack=PackSource(path=str(pack)),
        environment={},
        tracking={},
        ships=False,
        threads=1,
    )


@pytest.mark.parametrize("error", [ConfigError("too few"), EmptyClassError("none"), DivergedError("nan")], ids=lambda error: type(error).__name__)
def test_a_fault_that_no_new_worker_would_mend_is_the_run_s_outcome(
    small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ScanvitError
) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    board = MagicMock()
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr("scanvit.training.fit.fit", fail)
    (tmp_path / "run").mkdir()
    worker._train(assigned(small_pack, tmp_path), Pack.open(small_pack), tmp_path / "run", BoardProgress(board, rank=0))
    board.end.remote.assert_called_once_with({"error": error})


@pytest.mark.parametrize("reads", [True, False], ids=["one of the node", "the others"])
def test_a_flipped_bit_of_the_pack_ends_the_run_before_a_step(small_pack: Path, tmp_path: Path, *, reads: bool) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(small_pack, pack)
    content = bytearray((pack / "train.npy").read_bytes())
    content[-1] ^= 1
    (pack / "train.npy").write_bytes(content)
    (tmp_path / "run").mkdir()
    _, fault = worker._prepare(assigned(pack, tmp_path), tmp_path / "run", BoardProgress(None, rank=0), reads=reads)
    assert (fault is None) is not reads, "the others hear of it from the one that reads"
    if fault is not None:
        assert isinstance(fault, PackCorruptError)
        assert "train.npy was changed" in fault.message

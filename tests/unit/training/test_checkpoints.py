"""Checkpoints on disk: whole, the one before kept, damage noticed and passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanvit.core.errors import CheckpointError
from scanvit.training.checkpoints import AtomicCheckpointIO, check_intact, keep_previous, newest_intact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = AtomicCheckpointIO()
    for step in (1, 2):
        keep_previous(tmp_path)
        writer.save_checkpoint({"step": step, "weights": torch.full((64,), float(step))}, tmp_path / "last.ckpt")
    return tmp_path


def test_saving_over_a_checkpoint_keeps_the_one_before(folder: Path) -> None:
    reader = AtomicCheckpointIO()
    assert reader.load_checkpoint(folder / "last.ckpt")["step"] == 2
    assert reader.load_checkpoint(folder / "previous.ckpt")["step"] == 1
    assert newest_intact(folder) == folder / "last.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_truncated_checkpoint_is_passed_over(folder: Path, data: st.DataObject) -> None:
    content = (folder / "last.ckpt").read_bytes()
    keep = data.draw(st.integers(0, len(content) - 1))
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "last.ckpt").write_bytes(content[:keep])
    (damaged / "previous.ckpt").write_bytes((folder / "previous.ckpt").read_bytes())
    assert newest_intact(damaged) == damaged / "previous.ckpt"


def test_a_flipped_bit_in_the_weights_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray((folder / "last.ckpt").read_bytes())
    content[content.find(torch.full((64,), 2.0).numpy().tobytes()) + 10] ^= 0x10
    (folder / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="fails its checksum"):
        check_intact(folder / "last.ckpt")
    assert newest_intact(folder) == folder / "previous.ckpt"
    assert "last.ckpt is damaged" in caplog.text


def test_without_an_intact_checkpoint_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    assert newest_intact(tmp_path) is None
    assert newest_intact(tmp_path / "missing") is None

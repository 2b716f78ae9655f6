"""Checkpoints on disk: whole, the one before kept, damage noticed and passed over."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanvit.core.config import Experiment
from scanvit.core.errors import CheckpointError, NoSpaceError
from scanvit.training import fit
from scanvit.training.checkpoints import (
    AtomicCheckpointIO,
    Writer,
    check_intact,
    newest_intact,
    on_host,
    promote,
    remove_broken_writes,
    replace_by_link,
    saved_precision,
    write_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 2):
        write_checkpoint({"step": step, "weights": torch.full((64,), float(step))}, tmp_path / "next.ckpt")
        promote(tmp_path)
    return tmp_path


def test_saving_over_a_checkpoint_keeps_the_one_before(folder: Path) -> None:
    reader = AtomicCheckpointIO(Writer())
    assert reader.load_checkpoint(folder / "last.ckpt")["step"] == 2
    assert reader.load_checkpoint(folder / "previous.ckpt")["step"] == 1
    assert newest_intact(folder) == folder / "last.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_kill_between_link_and_rename_leaves_nothing_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    folder = tmp_path / "checkpoints"
    write_checkpoint({"step": 1}, folder / "last.ckpt")
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(SystemExit):
        replace_by_link(folder / "last.ckpt", folder / "next.ckpt")
    assert len(list(folder.iterdir())) == 2
    remove_broken_writes(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


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


def test_without_a_checkpoint_there_is_none_and_a_damaged_one_is_not_none(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) is None
    assert newest_intact(tmp_path / "missing") is None
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(CheckpointError, match="Every checkpoint of the run in"):
            newest_intact(tmp_path)


def test_written_beside_the_training_a_checkpoint_is_the_same_file(tmp_path: Path) -> None:
    """Also where the training goes on to change the weights before the first byte is written."""
    network, writer, start = torch.nn.BatchNorm2d(3), Writer(), threading.Event()
    checkpoint = {"state_dict": network.state_dict(), "step": 3, "sums": [1.0, 2.0], "optimizer": [{"state": {0: {"exp_avg": torch.arange(4.0)}}}]}
    write_checkpoint(checkpoint, tmp_path / "here.ckpt")
    writer.do(start.wait)
    values, arrived = on_host(checkpoint)
    writer.do(write_checkpoint, values, tmp_path / "beside.ckpt", arrived=arrived)
    with torch.no_grad():
        network.weight.fill_(9)
    assert not (tmp_path / "beside.ckpt").exists()
    start.set()
    writer.wait()
    assert (tmp_path / "beside.ckpt").read_bytes() == (tmp_path / "here.ckpt").read_bytes()
    assert torch.load(tmp_path / "beside.ckpt", weights_only=True)["state_dict"]._metadata == network.state_dict()._metadata


def test_what_a_writer_cannot_write_is_told_by_the_next_call_and_nothing_follows_it(tmp_path: Path) -> None:
    def fail() -> None:
        raise NoSpaceError("No space is left.")

    writer, done, gate = Writer(), list[str](), threading.Event()
    writer.do(gate.wait)
    writer.do(fail)
    writer.do(done.append, "after the error")
    writer.check()  # nothing has happened yet
    gate.set()
    with pytest.raises(NoSpaceError):
        writer.wait()
    assert done == []
    writer.do(done.append, "later")
    writer.wait()
    assert done == ["later"]
    writer.do(fail)
    writer.close()  # raises nothing: another error is on its way


@pytest.mark.parametrize("began_with", ["32-true", "bf16-mixed"])
def test_a_run_keeps_the_precision_that_it_began_with_on_another_kind_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began_with: str) -> None:
    experiment, path = Experiment(), tmp_path / "last.ckpt"
    experiment = replace(experiment, trainer=replace(experiment.trainer, accelerator="cpu"))
    write_checkpoint({"precision": began_with}, path)
    assert saved_precision(path) == began_with
    for here in (True, False):
        monkeypatch.setattr(fit, "has_bf16", lambda here=here: here)
        assert fit._decided(experiment, path).trainer.precision == began_with
        assert fit._decided(experiment, None).trainer.precision == ("bf16-mixed" if here else "32-true")
    asked = replace(experiment, trainer=replace(experiment.trainer, precision="32-true"))
    assert fit._decided(asked, path).trainer.precision == "32-true"

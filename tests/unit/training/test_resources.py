"""What a run asks of its machine, and what it says where that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scanvit.core.config import Experiment
from scanvit.core.errors import ConfigError
from scanvit.core.runtime import World
from scanvit.training import fit
from scanvit.training.world import join


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bind_to_cores", "keep_freed_memory"):
        monkeypatch.setattr(fit, name, lambda *args, **kwargs: None)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    monkeypatch.setattr(fit, "usable_cores", lambda: 4)
    for threads, processes, told in ((2, 2, False), ("auto", 8, False), (1, 8, False), (5, 1, True), (3, 2, True)):
        caplog.clear()
        experiment = replace(Experiment(), trainer=replace(Experiment().trainer, accelerator="cpu", threads=threads))
        fit._take_resources(experiment, World(local_world_size=processes, world_size=processes), None)
        assert ("trainer.threads is" in caplog.text) == told, (threads, processes)


def test_more_processes_than_gpus_are_told_before_they_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer.devices is 2, but PyTorch finds 1 GPU here"):
        join(World(local_world_size=2, world_size=2), accelerator="gpu", timeout_s=1, address=("127.0.0.1", 1), listen_fd=None)

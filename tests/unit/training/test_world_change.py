"""A run that goes on in a world of another size. One process with a larger batch takes the same way as several with the old one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanvit.core.errors import PreemptedError
from scanvit.core.events import read_events
from scanvit.core.loading import load_experiment
from scanvit.data import loader
from scanvit.data.pack import Pack
from scanvit.training.fit import fit
from scanvit.training.run_folder import bind

SETTINGS = (
    *("model.stem_widths=[8,8]", "model.depth=1", "model.dim=8", "model.dim_head=8", "schedule.name=cosine", "schedule.warmup_epochs=0"),
    *("trainer.max_epochs=3", "trainer.per_device_batch_size=8", "trainer.log_every_n_steps=1", "tracking.mlflow=false"),
)


class Batches(list[np.ndarray]):
    """Every batch that is trained on, as indices into the pack. Batch number ``stop_at`` brings a SIGTERM with it."""

    stop_at = 0

    def record(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:
        indices, weight = self.original(*args, **kwargs)
        self.append(indices.numpy())
        if len(self) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return indices, weight

    original = staticmethod(loader.rank_batch)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batches]:
    before, made = signal.getsignal(signal.SIGTERM), Batches()
    monkeypatch.setattr(loader, "rank_batch", made.record)
    yield made
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("steps", [3, 12, 19, 23], ids=lambda steps: f"after_{steps}_steps")
@pytest.mark.parametrize("then", [5, 16])
def test_each_image_is_seen_once_an_epoch(small_pack: Path, tmp_path: Path, batches: Batches, steps: int, then: int) -> None:
    pack = Pack.open(small_pack)
    experiment = bind(load_experiment("tiny", SETTINGS), pack)
    n = len(pack.targets("train"))
    per_epoch = -(-n // 8)
    assert per_epoch == 12
    batches.stop_at = steps
    with pytest.raises(PreemptedError):
        fit(experiment, pack, tmp_path)
    assert len(batches) == steps
    fit(replace(experiment, trainer=replace(experiment.trainer, per_device_batch_size=then)), pack, tmp_path)

    seen = np.concatenate(batches)
    assert len(seen) == 3 * n
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
        np.testing.assert_array_equal(seen[epoch * n : (epoch + 1) * n], loader.epoch_order(n, seed=experiment.seed, epoch=epoch))
    epochs = {event["epoch"]: event for event in read_events(tmp_path) if "val_loss" in event["values"]}
    assert sorted(epochs) == [1, 2, 3]
    assert epochs[3]["step"] == len(batches), "steps are counted as they were made"
    rates = [event["values"]["lr"] for event in read_events(tmp_path) if "lr" in event["values"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0], "the schedule ends with the last epoch"

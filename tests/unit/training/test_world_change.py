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
from scanvit.training.module import ClassificationModule
from scanvit.training.recipe import lr_factor, lr_scale
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


@pytest.mark.parametrize(("then", "goes_on_at"), [(8, 5), (16, 2)], ids=["the same world", "another world"])
def test_the_first_step_after_a_resume_has_the_learning_rate_of_its_world(
    small_pack: Path, tmp_path: Path, batches: Batches, monkeypatch: pytest.MonkeyPatch, then: int, goes_on_at: int
) -> None:
    pack, rates = Pack.open(small_pack), list[float]()
    monkeypatch.setattr(ClassificationModule, "on_train_batch_start", lambda module, *_: rates.append(module.optimizers().param_groups[0]["lr"]))
    experiment = bind(load_experiment("tiny", (*SETTINGS, "optimizer.lr_scaling=linear", "trainer.max_epochs=1")), pack)
    batches.stop_at = 5
    with pytest.raises(PreemptedError):
        fit(experiment, pack, tmp_path)
    fit(replace(experiment, trainer=replace(experiment.trainer, per_device_batch_size=then)), pack, tmp_path)

    def expected(batch_size: int, steps: range) -> list[float]:
        scale = lr_scale(experiment.optimizer, global_batch_size=batch_size)
        return [experiment.optimizer.lr * (scale * lr_factor(s, experiment.schedule, steps_per_epoch=steps.stop, max_epochs=1)) for s in steps]

    per_epoch = -(-len(pack.targets("train")) // then)
    assert rates == expected(8, range(12))[:5] + expected(then, range(goes_on_at, per_epoch))

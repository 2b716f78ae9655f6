"""The steps: nothing in them waits for the device. tests/integration/test_compile.py compiles them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.utils._python_dispatch import TorchDispatchMode

from scanvit.core.loading import load_experiment
from scanvit.data.pack import Pack
from scanvit.training.fit import fit
from scanvit.training.module import ClassificationModule
from scanvit.training.recorder import RunRecorder
from scanvit.training.run_folder import bind
from scanvit.training.step import Confusion, _channels_last

# Everything that draws random numbers or touches a loss is on.
SETTINGS = (
    *("model.stem_widths=[8,8]", "model.depth=1", "model.dim=16", "model.dim_head=16", "model.heads=2", "model.dropout=0.1", "model.drop_path=0.1"),
    *("augment.rotate_deg=10", "augment.noise=0.1", "augment.gamma=0.2", "augment.contrast=0.1", "augment.mixup=0.2", "augment.erase=0.3"),
    *("loss.label_smoothing=0.1", "loss.class_weights=balanced", "ema.decay=0.99", "trainer.gradient_clip_norm=1", "tracking.mlflow=false"),
    *("trainer.max_epochs=2", "trainer.per_device_batch_size=32", "tracking.system_metrics_every_s=0"),
)
READING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "bincount", "masked_select"}
"""Operations whose result, or its shape, the host has to wait for."""


class Reads(TorchDispatchMode):
    """Counts the operations that read a value while a step is made."""

    def __init__(self) -> None:
        super().__init__()
        self.in_step, self.steps, self.found = False, 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.in_step and name in READING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def test_no_step_of_fit_reads_a_value(small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, reads = Pack.open(small_pack), Reads()
    begin, end = ClassificationModule.on_train_batch_start, RunRecorder.on_train_batch_end

    def started(module: ClassificationModule, *args: Any) -> None:
        reads.in_step, reads.steps = True, reads.steps + 1
        begin(module, *args)

    def ended(recorder: RunRecorder, *args: Any) -> None:
        end(recorder, *args)
        reads.in_step = False

    monkeypatch.setattr(ClassificationModule, "on_train_batch_start", started)
    monkeypatch.setattr(RunRecorder, "on_train_batch_end", ended)
    experiment = bind(load_experiment("tiny", [*SETTINGS, "trainer.log_every_n_steps=1000"]), pack)
    with reads:
        fit(experiment, pack, tmp_path)
        assert reads.steps == 2 * -(-pack.size("train") // 32)
        assert not reads.found
        reads.in_step = True
        float(torch.ones(()) + 1)  # it does count
        assert reads.found["_local_scalar_dense"] == 1


def test_the_confusion_matrix_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    logits, targets = generator.random((50, 4), np.float32), generator.integers(0, 4, 50)
    losses, confusion = generator.random(50), Confusion(4, torch.device("cpu"))
    for part in (slice(0, 20), slice(20, 50)):
        confusion.add(*(torch.from_numpy(values[part]) for values in (losses, logits, targets)))
    loss, counts = confusion.over_ranks(lambda values: values * 2)  # two ranks with the same images
    assert counts.tolist() == (2 * confusion_matrix(targets, logits.argmax(1), labels=range(4))).tolist()
    assert loss == pytest.approx(losses.mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_lie_channels_last_and_stay_what_they_are(channels: int) -> None:
    images = torch.randn(2, channels, 6, 4)
    turned = _channels_last(images)
    assert torch.equal(turned, images)
    assert turned.stride() == (24 * channels, 1, 4 * channels, channels), "of a single channel too, where both formats are the same memory"

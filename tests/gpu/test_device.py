"""The same code on a GPU as on a CPU: the same batches, losses within rounding, and no step that waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanvit.core.loading import load_experiment
from scanvit.data.loader import Position, TrainLoader, as_tensor
from scanvit.data.pack import Pack
from scanvit.evaluation.predictions import predict_split
from scanvit.model.checkpoint import load_model
from scanvit.model.vit import VisionTransformer
from scanvit.training.checkpoints import Writer, on_host, write_checkpoint
from scanvit.training.fit import fit
from scanvit.training.module import ClassificationModule
from scanvit.training.recorder import RunRecorder
from scanvit.training.run_folder import bind, open_run
from scanvit.training.step import compiled, training_losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

SMALL = (
    *("model.stem_widths=[8,8]", "model.depth=2", "model.dim=32", "model.dim_head=32", "model.heads=2", "ema.decay=0.99", "trainer.max_epochs=2"),
    *("trainer.per_device_batch_size=16", "trainer.accelerator=gpu", "trainer.devices=1", "tracking.mlflow=false", "tracking.system_metrics_every_s=0"),
)
RANDOM = ("augment.rotate_deg=10", "augment.noise=0.1", "augment.mixup=0.2", "augment.erase=0.3", "model.dropout=0.1", "trainer.gradient_clip_norm=1")


@pytest.fixture
def pack(small_pack: Path) -> Pack:
    return Pack.open(small_pack)


@pytest.fixture
def exact() -> Iterator[None]:
    """No TF32, which keeps ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("home", ["cuda", "cpu"], ids=["resident", "streamed"])
def test_batches_are_those_of_the_cpu(pack: Pack, home: str) -> None:
    share: dict[str, Any] = {"position": lambda: Position(step=2, epoch=1, images=32), "seed": 3, "per_device_batch_size": 16, "rank": 0, "world_size": 1}
    arrays = pack.images("train"), pack.targets("train")
    here = TrainLoader(as_tensor(arrays[0]), as_tensor(arrays[1]), **share)
    there = TrainLoader(as_tensor(arrays[0], home), as_tensor(arrays[1], home), device="cuda", **share)
    for ours, theirs in zip(there, here, strict=True):
        assert all(part.is_cuda for part in ours)
        assert all(torch.equal(mine.cpu(), other) for mine, other in zip(ours, theirs, strict=True))


def _gradients(device: str, step: Any, pack: Pack, settings: tuple[str, ...], *, bf16: bool = False) -> list[torch.Tensor]:
    experiment = load_experiment("reference", [*SMALL, *settings])
    torch.manual_seed(0)
    network = VisionTransformer(experiment.model, num_classes=3, image_size_px=16, channels=1).to(device)
    pixels, targets = (as_tensor(array[:16], device) for array in (pack.images("train"), pack.targets("train")))
    torch.manual_seed(1)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        losses, _ = step(network, pixels, targets, class_weights=torch.ones(3, device=device), contract=pack.contract, experiment=experiment)
    losses.mean().backward()
    return [losses.detach().cpu(), *(p.grad.cpu() for p in network.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("exact")
def test_losses_and_gradients_are_those_of_the_cpu(pack: Pack) -> None:
    for ours, theirs in zip(_gradients("cuda", training_losses, pack, ()), _gradients("cpu", training_losses, pack, ()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, about itself
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_compiled_step_is_the_step(pack: Pack, cuda_graphs: bool) -> None:
    """With all that draws random numbers, three times: CUDA graphs are recorded by the second call and replayed by the third."""
    whole, plain = compiled(training_losses, batch_size=16, cuda_graphs=cuda_graphs), _gradients("cuda", training_losses, pack, RANDOM)
    for _ in range(3):
        for ours, theirs in zip(_gradients("cuda", whole, pack, RANDOM), plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 1000])
def test_no_step_waits_for_the_device(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """CUDA's own watch over every wait that a value causes, from the batch's draw to the recorder's end; the last step of an epoch may wait."""
    begin, end = ClassificationModule.on_train_batch_start, RunRecorder.on_train_batch_end
    watched = []

    def started(module: ClassificationModule, batch: Any, batch_idx: int) -> None:
        watched.append(batch_idx)
        if batch_idx:  # the first step of a run makes the optimizer's state
            torch.cuda.set_sync_debug_mode("error")
        begin(module, batch, batch_idx)

    def ended(recorder: RunRecorder, trainer: Any, *args: Any) -> None:
        if trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")
        end(recorder, trainer, *args)

    monkeypatch.setattr(ClassificationModule, "on_train_batch_start", started)
    monkeypatch.setattr(RunRecorder, "on_train_batch_end", ended)
    try:
        fit(bind(load_experiment("reference", [*SMALL, *RANDOM, f"trainer.log_every_n_steps={every}"]), pack), pack, tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert max(watched) >= 5


def test_a_checkpoint_holds_the_weights_of_its_moment(tmp_path: Path) -> None:
    weights = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    expected, writer = weights.cpu(), Writer()
    values, arrived = on_host({"weights": weights})
    weights.mul_(0)
    writer.do(write_checkpoint, values, tmp_path / "last.ckpt", arrived=arrived)
    writer.wait()
    assert torch.equal(torch.load(tmp_path / "last.ckpt", weights_only=True)["weights"], expected)


def test_probabilities_are_those_of_the_cpu(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = bind(load_experiment("reference", [*SMALL]), pack)
    open_run(tmp_path / "run", experiment)
    fit(experiment, pack, tmp_path / "run")
    model = load_model(tmp_path / "run")
    there = predict_split(model, pack, "val")
    assert model.network.head.weight.is_cuda
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = predict_split(model.cpu(), pack, "val")
    np.testing.assert_allclose(there.probs, here.probs, atol=1e-5)

"""A world of several processes computes what one process computes on the global batch, and sees what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.integration.worlds import in_world
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from scanvit.core.config import Experiment
from scanvit.core.contract import PixelContract
from scanvit.core.events import read_events
from scanvit.core.loading import load_experiment
from scanvit.core.runtime import World
from scanvit.data import loader
from scanvit.data.loader import Position, TrainLoader
from scanvit.data.pack import Pack
from scanvit.training.fit import fit
from scanvit.training.module import ClassificationModule
from scanvit.training.run_folder import bind
from scanvit.training.world import GlobalBatchNorm2d, batch_norm_sync, ddp_options, make_sums_repeatable

SMALL = ("model.stem_widths=[8,8,8]", "model.depth=1", "model.dim=16", "model.dim_head=8", "tracking.mlflow=false", "trainer.threads=1")
GLOBAL_BATCH = 12
LOSSES = ("loss.class_weights=balanced", "loss.label_smoothing=0.1")


class _Step(nn.Module):
    """What DDP wraps: the loss of one training step."""

    def __init__(self, module: ClassificationModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *batch: Tensor) -> Tensor:
        return self.module.training_step(batch, 0)


@dataclass(frozen=True)
class Case:
    images: int
    sync_batchnorm: bool


CASES = {"an uneven last batch": Case(29, False), "ranks without an image": Case(25, False), "synchronised BatchNorm": Case(29, True)}


def epoch_gradients(case: Case) -> list[dict[str, np.ndarray]]:
    """The clipped gradients of each step of an epoch, at the weights of the start, as this process has them."""
    world = World.from_environment()
    generator = np.random.default_rng(0)
    pixels, targets = (torch.from_numpy(generator.integers(0, high, shape)) for high, shape in ((256, (case.images, 1, 16, 16)), (3, case.images)))
    torch.manual_seed(0)
    experiment, counts = load_experiment("tiny", [*SMALL, *LOSSES]), torch.bincount(targets, minlength=3)
    module = ClassificationModule(experiment, class_names=("a", "b", "c"), contract=PixelContract(image_size_px=16), train_counts=counts)
    if case.sync_batchnorm:
        batch_norm_sync("cpu").apply(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train(case.sync_batchnorm)  # else batch statistics differ by design
    step: nn.Module = _Step(module)
    if world.world_size > 1:
        step = DistributedDataParallel(step, gradient_as_bucket_view=True, broadcast_buffers=False)
    share = {"per_device_batch_size": GLOBAL_BATCH // world.world_size, "rank": world.rank, "world_size": world.world_size}
    gradients = []
    make_sums_repeatable(step)
    for batch in TrainLoader(pixels.to(torch.uint8), targets, position=Position, seed=1, **share):
        module.zero_grad()
        step(*batch).backward()
        nn.utils.clip_grad_norm_(module.network.parameters(), 0.5)
        gradients.append({name: parameter.grad.numpy().copy() for name, parameter in module.network.named_parameters() if parameter.grad is not None})
    return gradients


def _all_cases() -> dict[str, list[dict[str, np.ndarray]]]:
    return {name: epoch_gradients(case) for name, case in CASES.items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_are_those_of_one_process_on_the_global_batch(world_size: int) -> None:
    ranks = in_world(world_size, _all_cases)
    for name, case in CASES.items():
        alone = epoch_gradients(case)
        assert len(alone) == 3
        for ours in (rank[name] for rank in ranks):
            for step, (mine, expected) in enumerate(zip(ours, alone, strict=True)):
                assert mine.keys() == expected.keys()
                scale = max(float(np.abs(value).max()) for value in expected.values())
                for parameter, value in expected.items():
                    np.testing.assert_allclose(mine[parameter], value, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{name}, step {step}, {parameter}")


def _statistics(images: np.ndarray) -> tuple[np.ndarray, ...]:
    world = World.from_environment()
    norm = GlobalBatchNorm2d(4)
    mine = norm(torch.from_numpy(images[world.rank :: world.world_size]))
    return mine.detach().numpy(), norm.running_mean.numpy(), norm.running_var.numpy()


def test_synchronised_batch_norm_is_batch_norm_over_all_images() -> None:
    images, plain = (3 + 5 * np.random.default_rng(0).normal(size=(7, 4, 5, 5))).astype(np.float32), nn.BatchNorm2d(4)
    expected = plain(torch.from_numpy(images)).detach().numpy()
    assert np.array_equal(GlobalBatchNorm2d(4)(torch.from_numpy(images)).detach().numpy(), expected), "alone it is BatchNorm"
    for rank, (mine, mean, variance) in enumerate(in_world(2, _statistics, images)):
        np.testing.assert_allclose(mine, expected[rank::2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean, plain.running_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(variance, plain.running_var.numpy(), rtol=1e-5)


def _train(pack: Path, run_dir: Path, settings: tuple[str, ...]) -> list[tuple[list[int], list[float]]]:
    """Train, and return the (indices, weights) of every batch of this process."""
    seen, original = [], loader.rank_batch

    def record(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:
        indices, weight = original(*args, **kwargs)
        seen.append((indices.tolist(), [weight] * len(indices)))
        return indices, weight

    loader.rank_batch = record
    opened = Pack.open(pack)
    experiment: Experiment = bind(load_experiment("tiny", [*SMALL, *settings]), opened)
    fit(experiment, opened, run_dir)
    return seen


def epoch_events(run_dir: Path) -> list[dict[str, float]]:
    return [event["values"] for event in read_events(run_dir) if "val_loss" in event["values"]]


def test_worlds_of_every_size_see_each_image_once_and_judge_alike(small_pack: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing the weights stay, so that figures can be compared. The 28 images of val make one batch on two of three ranks and
    two on the third: a collective operation in a validation step would wait for ever. In bf16 the rounding of an image depends on its batch."""
    n, figures = Pack.open(small_pack).size("train"), {}
    for world_size in (1, 2, 3):
        run_dir = tmp_path / str(world_size)
        settings = (f"trainer.per_device_batch_size={GLOBAL_BATCH // world_size}", "trainer.eval_batch_size=9", "trainer.max_epochs=2", "optimizer.lr=1e-30")
        exact = ("trainer.precision=32-true", "trainer.sync_batchnorm=true", "schedule.name=constant")
        seen = in_world(world_size, _train, small_pack, run_dir, (*settings, *exact))
        steps = -(-n // GLOBAL_BATCH)
        for epoch in range(2):
            batches = [batch for rank in seen for batch in rank[epoch * steps : (epoch + 1) * steps]]
            assert sorted(i for indices, weights in batches for i, weight in zip(indices, weights, strict=True) if weight) == list(range(n))
        figures[world_size] = epoch_events(run_dir)
    for world_size in (2, 3):
        for mine, alone in zip(figures[world_size], figures[1], strict=True):
            for name, value in alone.items():
                if not name.endswith("_s") and value is not None:
                    assert mine[name] == pytest.approx(value, abs=1e-6), f"{name} with {world_size} processes"


def _order_of_a_step() -> list[str]:
    """Of the backward pass of one step with the settings of a run: when a bucket of gradients is sent off, and when the stem's first are made."""
    torch.manual_seed(0)
    experiment = load_experiment("reference", ["model.depth=12", "tracking.mlflow=false"])
    module = ClassificationModule(experiment, class_names=("a", "b", "c"), contract=PixelContract(image_size_px=16), train_counts=torch.tensor([4, 4, 4]))
    options = {
        name: value
        for name, value in ddp_options(experiment.trainer, "cpu").items()
        if name in ("gradient_as_bucket_view", "broadcast_buffers", "bucket_cap_mb")
    }
    step = DistributedDataParallel(_Step(module), **options)
    order: list[str] = []

    def send(_, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, but not as text
        order.append("bucket")
        return allreduce_hook(None, bucket)

    step.register_comm_hook(None, send)
    next(module.network.stem.parameters()).register_hook(lambda _: order.append("first layer"))
    batch = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8), torch.arange(4) % 3, torch.ones(4)
    for _ in range(2):  # buckets are laid out anew after the first
        step(*batch).backward()
    order.clear()
    step(*batch).backward()
    return order


def test_gradients_are_sent_around_while_others_are_still_made() -> None:
    for order in in_world(2, _order_of_a_step):
        assert order.count("bucket") >= 3, "the gradients go in several buckets"
        assert order.index("first layer") >= 2, "the first of them before the backward pass is over"

"""Batches from a pack. The order of the training images is a pure function of (seed, position, rank, world size).

There is no sampler state: whoever knows how many optimizer steps were made, in a world of which size, knows which images come next. That is
what makes a resumed run the same run, and a run that goes on in a larger or smaller world one that still sees each image once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.runtime import derive_seed

Batch = tuple[Tensor, Tensor, Tensor]
"""images uint8 (B, C, H, W) in 0..255; targets int64 (B,); weights float32 (B,)."""


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of 0..n-1 in which an epoch (counted from 0) visits the training images. int64 (n,)."""
    generator = np.random.Generator(np.random.Philox(derive_seed("order", seed, epoch)))
    return generator.permutation(n)


def steps_per_epoch(n: int, *, per_device_batch_size: int, world_size: int) -> int:
    """Optimizer steps that visit every image once; the last one may be smaller."""
    return -(-n // (per_device_batch_size * world_size))


def rank_batch(order: np.ndarray, step: int, *, per_device_batch_size: int, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """This rank's share of the global batch of a step: (indices int64 (B,), weights float32 (B,)).

    Over all ranks each image of the global batch appears once. The weights make the sum of the ranks' weighted losses, divided by
    ``world_size`` as DDP's averaging does, the mean over the global batch. A rank that gets nothing of a small last batch gets one
    image with weight 0, because every rank has to take part in the step.
    """
    size = per_device_batch_size * world_size
    batch = order[step * size : (step + 1) * size]
    mine = batch[rank::world_size]
    if len(mine) == 0:
        return batch[:1], np.zeros(1, np.float32)
    return mine, np.full(len(mine), world_size / len(batch), np.float32)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: after ``step`` optimizer steps, ``images`` images of epoch ``epoch`` (counted from 0) have been seen."""

    step: int = 0
    epoch: int = 0
    images: int = 0

    def at(self, step: int, *, n: int, global_batch_size: int) -> Position:
        """The position at a later optimizer step, where each step between took ``global_batch_size`` of the ``n`` images."""
        made = max(0, step - self.step)
        to_epoch_end = -(-(n - self.images) // global_batch_size)
        if made < to_epoch_end:
            return Position(step=step, epoch=self.epoch, images=self.images + made * global_batch_size)
        epochs, steps = divmod(made - to_epoch_end, -(-n // global_batch_size))
        return Position(step=step, epoch=self.epoch + 1 + epochs, images=steps * global_batch_size)

    def as_steps(self, *, n: int, global_batch_size: int) -> int:
        """Steps that a run of this batch size from the start would have made here: ``step``, unless the world changed on the way."""
        per_epoch = -(-n // global_batch_size)
        return (self.epoch + 1) * per_epoch - -(-(n - self.images) // global_batch_size)


class TrainLoader:
    """One epoch an iteration, from wherever ``position()`` says that training stands."""

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        *,
        position: Callable[[], Position],
        seed: int,
        per_device_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.images = images
        self.targets = targets
        self.position = position
        self.seed = seed
        self.share = {"per_device_batch_size": per_device_batch_size, "rank": rank, "world_size": world_size}
        self.length = steps_per_epoch(len(images), per_device_batch_size=per_device_batch_size, world_size=world_size)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        position = self.position()
        order = epoch_order(len(self.images), seed=self.seed, epoch=position.epoch)[position.images :]
        size = self.share["per_device_batch_size"] * self.share["world_size"]
        for step in range(-(-len(order) // size)):
            chosen, weights = rank_batch(order, step, **self.share)
            indices = torch.from_numpy(chosen).to(self.images.device)
            # index_select copies whole images where indexing goes byte by byte: five times as fast on a CPU.
            yield self.images.index_select(0, indices), self.targets.index_select(0, indices), torch.from_numpy(weights).to(self.images.device)

    def state_dict(self) -> dict[str, int]:
        """Empty: the module knows the position. Its presence tells Lightning that this loader can resume."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See ``state_dict``."""


class EvalLoader:
    """A rank's contiguous share of a split, in order: nothing padded, nothing dropped, nothing twice."""

    def __init__(self, images: Tensor, targets: Tensor, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        n = len(images)
        self.start, self.stop = n * rank // world_size, n * (rank + 1) // world_size
        self.images, self.targets, self.batch_size = images, targets, batch_size

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self.start, self.stop, self.batch_size):
            part = slice(first, min(first + self.batch_size, self.stop))
            yield self.images[part], self.targets[part], torch.ones(part.stop - part.start, device=self.images.device)


def as_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """A view of the memory-mapped pack on a CPU (shared by all processes, never written); a resident copy on any other device."""
    if array.flags.writeable or torch.device(device).type != "cpu":
        return torch.from_numpy(np.array(array) if not array.flags.writeable else array).to(device)
    # torch knows no read-only tensors and warns; a map opened copy-on-write looks writable and leaves the file alone.
    if isinstance(array, np.memmap) and array.filename is not None and array.size:
        array = np.memmap(array.filename, dtype=array.dtype, mode="c", offset=array.offset, shape=array.shape)
        return torch.from_numpy(array)
    return torch.from_numpy(np.array(array))

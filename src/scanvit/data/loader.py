"""Batches from a pack. The order of the training images is a pure function of (seed, position, rank, world size).

There is no sampler state: whoever knows how many optimizer steps were made, in a world of which size, knows which images come next. That is
what makes a resumed run the same run, and a run that goes on in a larger or smaller world one that still sees each image once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.runtime import derive_seed

Batch = tuple[Tensor, Tensor, Tensor]
"""images uint8 (B, C, H, W) in 0..255; targets int64 (B,); weights float32 (B,)."""
Order = TypeVar("Order", np.ndarray, Tensor)

_RESIDENT_SHARE = 0.6
"""Of a device's free memory, what a split may take there for good."""
_COPIED_BYTES = 64 << 20
"""Of a split on its way to the device at a time: a pack is larger than what a machine may hold twice."""


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of 0..n-1 in which an epoch (counted from 0) visits the training images. int64 (n,)."""
    generator = np.random.Generator(np.random.Philox(derive_seed("order", seed, epoch)))
    return generator.permutation(n)


def steps_per_epoch(n: int, *, per_device_batch_size: int, world_size: int) -> int:
    """Optimizer steps that visit every image once; the last one may be smaller."""
    return -(-n // (per_device_batch_size * world_size))


def rank_batch(order: Order, step: int, *, per_device_batch_size: int, rank: int, world_size: int) -> tuple[Order, float]:
    """This rank's share of the global batch of a step: (indices int64 (B,), on the device of ``order``; the weight of each).

    Over all ranks each image of the global batch appears once. The weights make the sum of the ranks' weighted losses, divided by
    ``world_size`` as DDP's averaging does, the mean over the global batch. A rank that gets nothing of a small last batch gets one
    image with weight 0, because every rank has to take part in the step.
    """
    size = per_device_batch_size * world_size
    batch = order[step * size : (step + 1) * size]
    mine = batch[rank::world_size]
    if len(mine) == 0:
        return batch[:1], 0.0
    return mine, world_size / len(batch)


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
    """One epoch an iteration, from wherever ``position()`` says that training stands.

    A batch is chosen where ``images`` are, which is also where the order of the epoch is sent once: no step waits for the device. Images that
    stayed in the host's memory follow batch by batch to ``device``.
    """

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
        device: torch.device | str | None = None,
    ) -> None:
        """``images``, ``targets``: both in one place. ``device``: of the batches, where the images lie unless it is given."""
        self.images = images
        self.targets = targets
        self.device = torch.device(device or images.device)
        self.position = position
        self.seed = seed
        self.share = {"per_device_batch_size": per_device_batch_size, "rank": rank, "world_size": world_size}
        self.length = steps_per_epoch(len(images), per_device_batch_size=per_device_batch_size, world_size=world_size)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        position = self.position()
        order = torch.from_numpy(epoch_order(len(self.images), seed=self.seed, epoch=position.epoch)[position.images :]).to(self.images.device)
        size = self.share["per_device_batch_size"] * self.share["world_size"]
        for step in range(-(-len(order) // size)):
            indices, weight = rank_batch(order, step, **self.share)
            # index_select copies whole images where indexing goes byte by byte: five times as fast on a CPU.
            images, targets = self.images.index_select(0, indices), self.targets.index_select(0, indices)
            yield _send(images, self.device), _send(targets, self.device), torch.full((len(indices),), weight, device=self.device)

    def state_dict(self) -> dict[str, int]:
        """Empty: the module knows the position. Its presence tells Lightning that this loader can resume."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See ``state_dict``."""


class EvalLoader:
    """A rank's contiguous share of a split, in order: nothing padded, nothing dropped, nothing twice."""

    def __init__(
        self, images: Tensor, targets: Tensor, *, batch_size: int, rank: int = 0, world_size: int = 1, device: torch.device | str | None = None
    ) -> None:
        """``device``: of the batches, where the images lie unless it is given."""
        n = len(images)
        self.start, self.stop = n * rank // world_size, n * (rank + 1) // world_size
        self.images, self.targets, self.batch_size = images, targets, batch_size
        self.device = torch.device(device or images.device)

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self.start, self.stop, self.batch_size):
            part = slice(first, min(first + self.batch_size, self.stop))
            yield _send(self.images[part], self.device), _send(self.targets[part], self.device), torch.ones(part.stop - part.start, device=self.device)


def has_room(size_bytes: int, device: torch.device | str) -> bool:
    """Whether a split of that size may stay on the device: always on a CPU, where it is a view of the pack's file."""
    if torch.device(device).type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= _RESIDENT_SHARE * free_bytes


def as_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """A view of the memory-mapped pack on a CPU (shared by all processes, never written); a resident copy on any other device."""
    if not _is_host(device):
        copy = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=device)
        step = max(1, _COPIED_BYTES // max(1, array[:1].nbytes))
        for start in range(0, len(array), step):
            copy[start : start + step] = torch.from_numpy(np.array(array[start : start + step]))
        return copy
    if array.flags.writeable:
        return torch.from_numpy(array)
    # torch knows no read-only tensors and warns; a map opened copy-on-write looks writable and leaves the file alone.
    if isinstance(array, np.memmap) and array.filename is not None and array.size:
        array = np.memmap(array.filename, dtype=array.dtype, mode="c", offset=array.offset, shape=array.shape)
        return torch.from_numpy(array)
    return torch.from_numpy(np.array(array))


def _is_host(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"


def _send(part: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for it: from pinned memory, which it reads by itself."""
    if part.device.type == device.type:
        return part
    if device.type == "cuda":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)

"""How the processes of a run are tied together: DistributedDataParallel's settings, the process group, batch statistics over all of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from ..core.config import TrainerConfig
from ..core.errors import ConfigError, PackMismatchError
from ..core.runtime import World

_RENDEZVOUS_S = 900.0
"""How long processes wait for the others to be started: machines of a cluster are not given out in the same second."""
_OWN = {"data.pack", "trainer.threads", "trainer.precision"}
"""Settings that may differ among processes: each machine has its own paths and cores. Precisions are compared as they were decided (``recorder``)."""
_BUCKET_MB = 4
"""Gradients are sent around in buckets while those of earlier layers are still being made. The reference has 20 MB of them: PyTorch's 25 would send
nearly all of it after the last."""


def ddp_options(settings: TrainerConfig, accelerator: str) -> dict[str, Any]:
    """Keyword arguments of Lightning's DDPStrategy, or of a host's subclass of it."""
    return {
        "process_group_backend": backend(accelerator),
        "timeout": timedelta(seconds=settings.timeout_s),
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": _BUCKET_MB,
        # DDP would send rank zero's buffers around before every forward pass, in validation too, where the ranks have unlike numbers of
        # batches and would wait for each other for ever. They only matter when the network is evaluated: ``broadcast_buffers``.
        "broadcast_buffers": False,
    }


def backend(accelerator: str) -> str:
    return "nccl" if accelerator == "gpu" else "gloo"


def join(world: World, *, accelerator: str, timeout_s: float, address: tuple[str, int], listen_fd: int | None) -> None:
    """Make this process one of its world's process group. ``listen_fd``: a socket of rank zero that is bound to ``address`` already.

    Raises ConfigError where this machine has fewer GPUs than processes.
    """
    if accelerator == "gpu" and world.local_world_size > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices is {world.local_world_size}, but PyTorch finds {torch.cuda.device_count()} GPU here.",
            hint="Leave it out for as many as there are; several processes on the CPU need trainer.accelerator=cpu as well.",
        )
    host, port = address
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, world.world_size, is_master=world.rank == 0, timeout=timedelta(seconds=_RENDEZVOUS_S), master_listen_fd=listen_fd
    )
    device = None
    if accelerator == "gpu":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend(accelerator),
        store=distributed.PrefixStore("scanvit", store),  # type: ignore[attr-defined]
        rank=world.rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device,
    )


class Council:
    """Decisions that all ranks take together, on a process group of its own: on a CPU, so that no step waits for a GPU."""

    def __init__(self, *, timeout_s: float) -> None:
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) if distributed.is_initialized() else None

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; every rank gets the same answer."""
        if self._group is None:
            return flag
        votes = torch.tensor([flag], dtype=torch.int32)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self._group)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value, group=self._group)
        return values


def refuse_unlike_experiments(settings: list[dict[str, Any]]) -> None:
    """``settings``: the flattened experiment by rank. A machine whose command differs would train its own experiment, and only rank zero's is recorded.

    Raises PackMismatchError for another pack, ConfigError with the first setting that differs.
    """
    first = settings[0]
    for rank, other in enumerate(settings):
        key = next((key for key in first if key not in _OWN and other.get(key) != first[key]), None)
        if key == "data.fingerprint":
            message = f"Process 0 trains on the pack {str(first[key])[:12]}, but process {rank} on {str(other.get(key))[:12]}."
            raise PackMismatchError(message, hint="Give every machine the same pack.")
        if key is not None:
            message = f"Process 0 trains with {key} = {first[key]}, but process {rank} with {other.get(key)}."
            raise ConfigError(message, hint="Give the very same command on every machine.")


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the buffers (batch statistics) of rank zero, which are the ones that checkpoints hold."""
    if distributed.is_initialized():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def make_sums_repeatable(model: nn.Module | None) -> None:
    """Where three or more ranks add their gradients on CPUs: make the sums independent of when the processes were started.

    gloo adds in an order that depends on where a value lies in its bucket, and DDP lays its buckets out anew after its first step, so that the
    first step after a resume would round otherwise than the same step of an undisturbed run. Two numbers have one sum.
    """
    if isinstance(model, DistributedDataParallel) and distributed.get_world_size() > 2 and model.device.type == "cpu":
        model.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket))


def _mean_in_rank_order(bucket: Any) -> torch.futures.Future[Tensor]:
    """Every rank adds its share of the bucket over all ranks, in their order, and hands the others the result: the traffic of an all-reduce."""
    gradients, world_size = bucket.buffer(), distributed.get_world_size()
    padded = gradients.new_zeros(-(-len(gradients) // world_size) * world_size)
    padded[: len(gradients)] = gradients
    shares = torch.empty_like(padded)
    distributed.all_to_all_single(shares, padded)
    first, *others = shares.chunk(world_size)
    for share in others:
        first += share
    distributed.all_gather_into_tensor(padded, first.div_(world_size))
    gradients.copy_(padded[: len(gradients)])
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def batch_norm_sync(accelerator: str) -> LayerSync:
    """Lightning's plugin for ``trainer.sync_batchnorm``. PyTorch's layer knows GPUs only."""
    return TorchSyncBatchNorm() if accelerator == "gpu" else _CpuSyncBatchNorm()


class _CpuSyncBatchNorm(LayerSync):
    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm2d  # in place: the optimizer and the average know the parameters
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is GlobalBatchNorm2d:
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return model


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all ranks, as nn.SyncBatchNorm computes it; differentiable through the sums."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same. In evaluation and in a single process it is BatchNorm."""
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        per_channel = input.numel() // input.shape[1]
        count = all_reduce(torch.tensor(float(per_channel)))
        mean = all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # unbiased, as PyTorch keeps it
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input.dtype)

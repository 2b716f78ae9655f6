"""The recipe as pure functions: learning-rate schedule, EMA decay, class weights; and the optimizer that they drive."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ..core.config import LossConfig, OptimizerConfig, ScheduleConfig


def lr_factor(step: int, schedule: ScheduleConfig, *, steps_per_epoch: int, max_epochs: int) -> float:
    """Share of the base learning rate, 0..1, for the optimizer step counted from 0.

    Linear warm-up, then constant or half a cosine down to ``min_lr_ratio`` at the last step (Loshchilov & Hutter 2017, eq. 5, one cycle).
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    total = max_epochs * steps_per_epoch
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def lr_scale(config: OptimizerConfig, *, global_batch_size: int) -> float:
    """Factor on ``lr`` for a global batch size; 1 at ``lr_batch_size``.

    linear: Goyal et al. 2017, section 2.1; sqrt: Malladi et al. 2022, the square root scaling rule of Adam.
    """
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.lr_scaling]
    return float((global_batch_size / config.lr_batch_size) ** power)


def ema_decay(step: int, decay: float) -> float:
    """Decay for the optimizer step counted from 0: short memory at first, so that the random start is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def class_weights(counts: np.ndarray, config: LossConfig) -> np.ndarray:
    """Weight of each class, float32 (K,), with a mean of 1 over the training images. ``counts``: training images a class, all > 0."""
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[config.class_weights]
    weights = np.power(counts.astype(np.float64), -power)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW. Weight decay reaches matrices and kernels only, not biases, norms, position embeddings and the [CLS] token."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("pos_embed", "cls_token"))
        (decayed if is_matrix else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(groups, lr=config.lr, betas=config.betas, fused=True)


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def averaged_pairs(average: nn.Module, network: nn.Module) -> tuple[Pairs, Pairs]:
    """The weights and buffers of both, in pairs: those that are averaged, and the counters. They hold until a module moves to another device."""
    mine, theirs = ([*module.parameters(), *module.buffers()] for module in (average, network))
    pairs = list(zip(mine, theirs, strict=True))
    floating, counters = ([pair for pair in pairs if pair[0].is_floating_point() is wanted] for wanted in (True, False))
    return ([a for a, _ in floating], [b for _, b in floating]), ([a for a, _ in counters], [b for _, b in counters])


@torch.no_grad()
def update_average(pairs: tuple[Pairs, Pairs], decay: float) -> None:
    """One step of the exponential moving average, over weights and buffers; counters are copied."""
    (averages, values), (counters, counts) = pairs
    torch._foreach_lerp_(averages, values, 1 - decay)
    torch._foreach_copy_(counters, counts)

"""Schedules, weights and the moving average against their formulae."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from scanvit.core.config import LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from scanvit.model.vit import VisionTransformer
from scanvit.training.recipe import averaged_pairs, build_optimizer, class_weights, ema_decay, lr_factor, lr_scale, update_average


def factors(schedule: ScheduleConfig, steps: int = 100) -> list[float]:
    return [lr_factor(step, schedule, steps_per_epoch=10, max_epochs=10) for step in range(steps + 1)]


def test_the_reference_schedule_is_constant() -> None:
    assert set(factors(ScheduleConfig())) == {1.0}


def test_warm_up_rises_to_one_and_the_cosine_falls_to_its_floor() -> None:
    values = factors(ScheduleConfig(name="cosine", warmup_epochs=2, min_lr_ratio=0.1))
    assert values[0] == pytest.approx(1 / 21)
    assert values[:21] == sorted(values[:21])
    assert values[20] == 1.0
    assert values[20:] == sorted(values[20:], reverse=True)
    assert values[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert values[100] == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    values = factors(ScheduleConfig(name="cosine", warmup_epochs=10))
    assert all(0 < value <= 1 for value in values[:100])


@pytest.mark.parametrize(("name", "expected"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_learning_rate_follows_the_global_batch_size_only_if_asked(name: str, expected: float) -> None:
    config = OptimizerConfig(lr_scaling=name, lr_batch_size=64)
    assert lr_scale(config, global_batch_size=256) == pytest.approx(expected)
    assert lr_scale(config, global_batch_size=64) == 1.0
    assert OptimizerConfig().lr_scaling == "none", "the reference's"


@pytest.mark.parametrize(("name", "ratio"), [("none", 1.0), ("sqrt", 3.0), ("balanced", 9.0)])
def test_class_weights_favour_rare_classes_and_keep_the_mean_at_one(name: str, ratio: float) -> None:
    counts = np.array([900, 100])
    weights = class_weights(counts, LossConfig(class_weights=name))
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0)


def test_weight_decay_reaches_matrices_only() -> None:
    network = VisionTransformer(ModelConfig(stem_widths=(4, 4), dim=8, depth=1, heads=1, dim_head=8, mlp_dim=8), num_classes=2, image_size_px=8, channels=1)
    decayed, free = build_optimizer(network, OptimizerConfig(name="adamw", weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= free_names
    assert "head.weight" not in free_names
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


def test_the_average_follows_its_recursion_and_copies_counters() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = copy.deepcopy(network)
    with torch.no_grad():
        network[0].weight.add_(1.0)
        network[1].num_batches_tracked.add_(5)
    before = average[0].weight.clone()
    update_average(averaged_pairs(average, network), 0.9)
    torch.testing.assert_close(average[0].weight, 0.9 * before + 0.1 * network[0].weight)
    assert average[1].num_batches_tracked == 5


def test_the_decay_grows_to_its_setting() -> None:
    values = [ema_decay(step, 0.99) for step in range(2000)]
    assert values == sorted(values)
    assert values[0] == 0.1
    assert values[-1] == 0.99

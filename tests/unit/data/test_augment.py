"""Augmentation: shapes and ranges hold, nothing happens at zero, and the draws follow torch's seed."""

from __future__ import annotations

import pytest
import torch

from scanvit.core.config import AugmentConfig
from scanvit.data.augment import augment, mix

FULL = AugmentConfig(rotate_deg=10, shift=0.1, scale=0.1, hflip=0.5, brightness=0.1, contrast=0.2, gamma=0.3, noise=0.05, erase=0.5)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_all_zero_leaves_the_images_alone(images: torch.Tensor) -> None:
    assert augment(images, AugmentConfig()) is images


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_draws_the_same_changes_and_another_draws_others(images: torch.Tensor, channels: int) -> None:
    images = images.expand(-1, channels, -1, -1)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, FULL))
    assert results[0].shape == images.shape
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0][0] - images[0], results[0][1] - images[1]), "every image draws its own change"


def test_a_certain_mirror_is_the_mirror_image(images: torch.Tensor) -> None:
    torch.testing.assert_close(augment(images, AugmentConfig(hflip=1.0)), images.flip(3), atol=1e-5, rtol=0)


def test_a_shift_moves_by_at_most_its_share(images: torch.Tensor) -> None:
    point = torch.zeros(64, 1, 33, 33)
    point[:, :, 16, 16] = 1.0
    moved = augment(point, AugmentConfig(shift=0.25))
    rows = (moved.sum(3).squeeze(1) * torch.arange(33)).sum(1) / moved.sum((1, 2, 3))
    assert (rows - 16).abs().max() <= 0.25 * 33 + 1
    assert (rows - 16).abs().max() > 2


def test_contrast_keeps_the_mean_and_brightness_moves_it(images: torch.Tensor) -> None:
    contrast = augment(images, AugmentConfig(contrast=0.5))
    torch.testing.assert_close(contrast.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5, rtol=0)
    brightness = augment(images, AugmentConfig(brightness=0.2)) - images
    assert brightness.abs().max() <= 0.4 + 1e-6  # of a full range of 2
    assert brightness.std((1, 2, 3)).max() < 1e-6, "one offset an image"


def test_gamma_keeps_black_white_and_the_order_of_the_grays() -> None:
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).repeat(64, 1, 16, 1)
    changed = augment(ramp, AugmentConfig(gamma=0.5))
    torch.testing.assert_close(changed[..., [0, -1]], ramp[..., [0, -1]], atol=1e-6, rtol=0)
    assert bool((changed.diff(dim=3) > 0).all())
    middle = (changed[:, 0, 0, 8] + 1) / 2
    expected = (ramp[0, 0, 0, 8] + 1) / 2
    assert expected**1.5 - 1e-6 <= middle.min() < expected < middle.max() <= expected ** (1 / 1.5) + 1e-6
    outside = augment(ramp * 1.5, AugmentConfig(gamma=0.5))
    assert bool(outside.isfinite().all())


def test_erasing_blanks_a_bounded_rectangle() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 32, 32)
    changed = (augment(images, AugmentConfig(erase=1.0)) != images).float().mean((1, 2, 3))
    assert changed.max() <= 0.25
    assert changed.max() > 0.1


def test_mixup_is_the_convex_sum_it_says(images: torch.Tensor) -> None:
    torch.manual_seed(3)
    mixed, partner, share = mix(images, 0.4)
    assert bool((share >= 0.5).all())
    assert bool((share <= 1).all())
    torch.testing.assert_close(mixed, share.view(-1, 1, 1, 1) * images + (1 - share).view(-1, 1, 1, 1) * images[partner])

"""Random changes of training images that leave X-rays and B-scans plausible, drawn for a whole batch on its device.

All draws come from torch's global generators, which training seeds by (seed, step, rank) before each step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.config import AugmentConfig

# B images, C channels, H height, W width. Pixels are normalised to about -1..1 (full range 2), as the network sees them.
_FULL_RANGE = 2.0


def augment(images: Tensor, config: AugmentConfig) -> Tensor:
    """float (B, C, H, W) -> the same shape. Every image draws its own values; mixup is in ``mix`` because it needs the targets."""
    if config.rotate_deg or config.shift or config.scale or config.hflip:
        images = _affine(images, config)
    if config.brightness or config.contrast:
        images = _exposure(images, config)
    if config.gamma:
        images = _gamma(images, config.gamma)
    if config.noise:
        amount = _uniform(images, 0.0, config.noise * _FULL_RANGE)
        images = images + amount * torch.randn_like(images)
    if config.erase:
        images = _erase(images, config.erase)
    return images


def mix(images: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """mixup (Zhang et al. 2018, eq. 1): (mixed images, permutation (B,), share of the first image (B,) in 0.5..1)."""
    # By way of int32: torch 2.13's compiler fails where an index is a permutation and nothing else.
    partner = torch.randperm(len(images), dtype=torch.int32, device=images.device).long()
    # What torch.distributions.Beta draws from, without the classes about it, which torch.compile cannot take into one graph.
    share = torch._sample_dirichlet(torch.full((len(images), 2), alpha, device=images.device))[:, 0]
    share = torch.maximum(share, 1 - share)
    weight = share.view(-1, 1, 1, 1).to(images.dtype)
    return weight * images + (1 - weight) * images[partner], partner, share


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One value an image, (B, 1, 1, 1)."""
    return torch.empty(len(images), 1, 1, 1, device=images.device, dtype=images.dtype).uniform_(low, high)


def _affine(images: Tensor, config: AugmentConfig) -> Tensor:
    draw = lambda low, high: _uniform(images, low, high).view(-1)  # noqa: E731
    angle = draw(-1, 1) * math.radians(config.rotate_deg)
    zoom = 1 / (1 + draw(-1, 1) * config.scale)
    mirror = torch.where(draw(0, 1) < config.hflip, -1.0, 1.0)
    shift_x, shift_y = draw(-2, 2) * config.shift, draw(-2, 2) * config.shift  # the grid's side is 2
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    matrix = torch.stack([torch.stack([cos * mirror, -sin, shift_x], 1), torch.stack([sin * mirror, cos, shift_y], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _exposure(images: Tensor, config: AugmentConfig) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = _uniform(images, 1 - config.contrast, 1 + config.contrast)
    offset = _uniform(images, -config.brightness, config.brightness) * _FULL_RANGE
    return (images - mean) * factor + mean + offset


def _gamma(images: Tensor, largest: float) -> Tensor:
    limit = math.log1p(largest)
    exponent = torch.exp(_uniform(images, -limit, limit))
    share = ((images + 1) / _FULL_RANGE).clamp(0, 1)  # a power of a negative number is none
    return share**exponent * _FULL_RANGE - 1


def _erase(images: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al. 2020) with the image's own mean: 2 to 20 % of the area, aspect 1/2 to 2."""
    _, _, height, width = images.shape
    area, aspect = _uniform(images, 0.02, 0.2), torch.exp(_uniform(images, -math.log(2), math.log(2)))
    half_h, half_w = (area * aspect).sqrt() * height / 2, (area / aspect).sqrt() * width / 2
    centre_y, centre_x = _uniform(images, 0, height), _uniform(images, 0, width)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = ((rows - centre_y).abs() < half_h) & ((columns - centre_x).abs() < half_w) & (_uniform(images, 0, 1) < probability)
    return torch.where(inside, images.mean((1, 2, 3), keepdim=True), images)

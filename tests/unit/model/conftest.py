"""An independent reading of the network's formulae: no module of the product, each step as it stands in the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanvit.core.config import ModelConfig
from scanvit.model import VisionTransformer

SMALL = {"stem_widths": (4, 6, 8, 10), "dim": 12, "depth": 2, "heads": 3, "dim_head": 5, "mlp_dim": 16}


@pytest.fixture
def make_network() -> Callable[..., VisionTransformer]:
    """A small network in eval mode, every weight and running statistic off its starting value, and the weights large enough to be seen."""

    def make(*, num_classes: int = 3, image_size_px: int = 16, channels: int = 1, seed: int = 0, **settings: Any) -> VisionTransformer:
        torch.manual_seed(seed)
        config = ModelConfig(**{**SMALL, **settings})
        network = VisionTransformer(config, num_classes=num_classes, image_size_px=image_size_px, channels=channels)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif name.endswith(("conv.weight", "patch_embed.weight", "qkv.weight", "proj.weight")):
                    tensor.mul_(2.5)
                elif tensor.ndim == 1:
                    tensor.add_(0.3 * torch.randn(tensor.shape))
        return network.eval()

    return make


@pytest.fixture
def naive_logits() -> Callable[..., Tensor]:
    return _naive_logits


def _naive_logits(weights: Mapping[str, Tensor], images: Tensor, config: ModelConfig) -> Tensor:
    x = images
    for i in range(len(config.stem_widths)):
        x = _convolution(x, weights[f"stem.{i}.conv.weight"], weights[f"stem.{i}.conv.bias"], stride=2 if i >= len(config.stem_widths) - 2 else 1)
        mean, var, gain, shift = (weights[f"stem.{i}.norm.{key}"][None, :, None, None] for key in ("running_mean", "running_var", "weight", "bias"))
        x = ((x - mean) / torch.sqrt(var + 1e-5) * gain + shift).clamp(min=0)
    patches = [x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])]
    tokens = [_linear(patch, weights, "patch_embed") for patch in patches]
    z = torch.stack([weights["cls_token"][0].expand(len(images), -1), *tokens], dim=1) + weights["pos_embed"]
    for i in range(config.depth):
        z = z + _attention(_layer_norm(z, weights, f"blocks.{i}.norm1"), weights, f"blocks.{i}.attn", config)
        hidden = _linear(_layer_norm(z, weights, f"blocks.{i}.norm2"), weights, f"blocks.{i}.mlp.fc1")
        hidden = hidden * (hidden > 0) if config.activation == "relu" else hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        z = z + _linear(hidden, weights, f"blocks.{i}.mlp.fc2")
    pooled = z[:, 0] if config.pool == "cls" else sum(z[:, 1 + n] for n in range(len(patches))) / len(patches)
    return _linear(_layer_norm(pooled, weights, "norm"), weights, "head")


def _convolution(x: Tensor, kernel: Tensor, bias: Tensor, *, stride: int) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2], x.shape[3]
    shifted = [
        torch.einsum("bchw,oc->bohw", padded[:, :, dy : dy + height : stride, dx : dx + width : stride], kernel[:, :, dy, dx])
        for dy in range(3)
        for dx in range(3)
    ]
    return sum(shifted) + bias[None, :, None, None]


def _attention(z: Tensor, weights: Mapping[str, Tensor], name: str, config: ModelConfig) -> Tensor:
    h, d = config.heads, config.dim_head
    w_q, w_k, w_v = weights[f"{name}.qkv.weight"].split(h * d)
    heads = []
    for i in range(h):
        rows = slice(i * d, (i + 1) * d)
        q, k, v = (torch.einsum("bnc,dc->bnd", z, w[rows]) for w in (w_q, w_k, w_v))
        scores = torch.exp(torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(d))
        heads.append(torch.einsum("bnm,bmd->bnd", scores / scores.sum(dim=2, keepdim=True), v))
    return _linear(torch.cat(heads, dim=2), weights, f"{name}.proj")


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.einsum("...c,dc->...d", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def _layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

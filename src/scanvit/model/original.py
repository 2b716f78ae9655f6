"""Weights of the original project's network (``vit_model.pth``): its names to ours, its sizes from the shapes.

The mathematics are the same; the names come from its modules: ``conv_stem`` and ``to_patch_embedding`` (sequences with places that hold no
weights), ``transformer.layers.I.0`` (attention) and ``.1`` (feed-forward), ``mlp_head``; each may stand behind ``model.``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from ..core.config import ModelConfig
from ..core.errors import CheckpointError
from .stem import REDUCTION

DIM_HEAD = 64
"""The original never stored the width of a head; all its networks have this one."""

_NAMES = {
    "pos_embedding": "pos_embed",
    "cls_token": "cls_token",
    "to_patch_embedding.1": "patch_embed",
    "mlp_head.0": "norm",
    "mlp_head.1": "head",
}
_LAYER_NAMES = {
    "0.norm": "norm1",
    "0.fn.to_qkv": "attn.qkv",
    "0.fn.to_out.0": "attn.proj",
    "1.norm": "norm2",
    "1.fn.net.0": "mlp.fc1",
    "1.fn.net.3": "mlp.fc2",
}
_STEM_KEY = re.compile(r"conv_stem\.(\d{1,3})\.(\w+)")
_LAYER_KEY = re.compile(r"transformer\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
# What a LightningModule keeps beside the network: states of metrics and weights of the loss.
_HARMLESS_KEY = re.compile(r"((train|val|valid|test)_\w+|loss|loss_fn|criterion)\.\w+")


class Network(NamedTuple):
    """What the shapes of a state dict say about its network."""

    state_dict: dict[str, Tensor]
    config: ModelConfig
    num_classes: int
    image_size_px: int
    channels: int


def is_original(state_dict: Mapping[str, Tensor]) -> bool:
    return any(key.removeprefix("model.").startswith(("conv_stem.", "to_patch_embedding.", "pos_embedding")) for key in state_dict)


def from_original(state_dict: Mapping[str, Tensor]) -> Network:
    """Rename the weights and infer the sizes. ReLU, [CLS] pooling, no dropout, heads of 64: the original's.

    Raises CheckpointError for a weight that has no place in the network, and for sizes that make none.
    """
    weights = _renamed(state_dict)
    try:
        widths = tuple(weights[f"stem.{index}.conv.weight"].shape[0] for index in range(_count(weights, "stem.", ".conv.weight")))
        depth = _count(weights, "blocks.", ".norm1.weight")
        inner, dim = weights["blocks.0.attn.proj.weight"].shape[1], weights["cls_token"].shape[-1]
        if inner % DIM_HEAD:
            raise CheckpointError(f"The attention is {inner} wide, which is no multiple of {DIM_HEAD}.", hint="Only heads of width 64 can be loaded.")
        side = math.isqrt(weights["pos_embed"].shape[1] - 1)
        config = ModelConfig(
            stem_widths=widths, dim=dim, depth=depth, heads=inner // DIM_HEAD, dim_head=DIM_HEAD, mlp_dim=weights["blocks.0.mlp.fc1.weight"].shape[0]
        )
        num_classes, channels = weights["head.weight"].shape[0], weights["stem.0.conv.weight"].shape[1]
    except KeyError as error:
        raise CheckpointError(
            f"The original's network has no weight for {error.args[0]!r}.", hint="The file is incomplete; fetch or export it again."
        ) from None
    except (IndexError, ValueError, ValidationError):  # too few dimensions, a negative count of tokens, a width of zero
        raise CheckpointError("The shapes of the weights make no network of the original.", hint="Fetch or export the file again.") from None
    for index in range(len(widths)):  # files of old PyTorch versions lack this counter, which prediction never reads
        weights.setdefault(f"stem.{index}.norm.num_batches_tracked", torch.tensor(0))
    return Network(weights, config, num_classes, side * REDUCTION, channels)


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        bare = key.removeprefix("model.")
        if (name := _new_name(bare)) is None:
            if _HARMLESS_KEY.fullmatch(bare):
                continue
            raise CheckpointError(
                f"The weight {key!r} has no place in the network.", hint="Only the original's own network, with a convolutional stem, can be loaded."
            )
        if name in weights:
            raise CheckpointError(f"The weight {bare!r} is in the file twice, with and without 'model.'.", hint="Keep one of the two.")
        weights[name] = tensor
    return weights


def _new_name(key: str) -> str | None:
    """Our name of one of the original's weights; None if it has none."""
    if match := _STEM_KEY.fullmatch(key):
        block, place = divmod(int(match[1]), 3)  # convolution, normalisation, ReLU
        return None if place == 2 else f"stem.{block}.{('conv', 'norm')[place]}.{match[2]}"
    if match := _LAYER_KEY.fullmatch(key):
        inside = _LAYER_NAMES.get(match[2])
        return inside and f"blocks.{int(match[1])}.{inside}.{match[3]}"
    if key in _NAMES:
        return _NAMES[key]
    module, _, leaf = key.rpartition(".")
    return f"{_NAMES[module]}.{leaf}" if module in _NAMES else None


def _count(weights: Mapping[str, Tensor], start: str, end: str) -> int:
    return sum(key.startswith(start) and key.endswith(end) for key in weights)

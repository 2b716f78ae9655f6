"""Where the network looks: maps over the image, from 0 (nothing) to 1 (most), at the resolution of its tokens.

    rollout     attention of all blocks, followed back to the image (Abnar and Zuidema 2020); the same for every class
    relevance   attention weighted by its gradient for one class (Chefer et al. 2021, "Generic attention-model explainability")
    occlusion   how far the log-odds of one class fall when a patch is covered (Zeiler and Fergus 2014): knows nothing of the network

None of them shows why an answer is right. ``tests`` hold them to the sanity check of Adebayo et al. 2018: other weights, another map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.checkpoint import Classifier
from ..model.transformer import Block
from ..model.vit import VisionTransformer

Method = Literal["rollout", "relevance", "occlusion"]
METHODS: tuple[Method, ...] = ("rollout", "relevance", "occlusion")
Maps = npt.NDArray[np.float32]
Answer = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""(N, C, H, W) pixels -> (N, K) logits."""

_AT_ONCE = 8
"""Images at a time: the attention of a large network takes 70 MB an image."""


def explain(model: Classifier, pixels: npt.NDArray[np.uint8], classes: Sequence[int], *, method: Method = "relevance") -> Maps:
    """(N, C, H, W) pixels and the class to explain of each -> (N, h, w), h = H / 4; of occlusion, one value a covered patch of 1/8 of the side."""
    maps = []
    for start in range(0, len(pixels), _AT_ONCE):
        part, wanted = pixels[start : start + _AT_ONCE], torch.as_tensor(list(classes[start : start + _AT_ONCE]))
        if method == "occlusion":
            maps.append(occlusion(lambda images: model.logits(torch.from_numpy(images)).numpy(), part, wanted.tolist()))
        else:
            images = model.contract.normalize(torch.from_numpy(np.array(part)))
            maps.append(_rollout(model.network, images) if method == "rollout" else _relevance(model.network, images, wanted))
    return np.concatenate(maps)


def _with_attention(network: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits (B, K), the last tokens (B, N, D) and the attention of each block, (B, h, N, N), as parts of the graph."""
    tokens, attention = network.embed(images), []
    for block in cast("Iterable[Block]", network.blocks):
        normed = block.norm1(tokens)
        weights = block.attn.weights(normed)
        attention.append(weights)
        tokens = tokens + block.attn.mix(weights, normed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return network.head(network.norm(network.pool(tokens))), tokens, attention


def _rollout(network: VisionTransformer, images: Tensor) -> Maps:
    with torch.inference_mode():
        _, tokens, attention = _with_attention(network, images)
        # The residual branch carries each token on beside what it looks at: half and half.
        flow = _followed([(weights.mean(dim=1) + _eye(weights)) / 2 for weights in attention])
        return _to_patches(_read(network, tokens.shape) @ flow)


def _relevance(network: VisionTransformer, images: Tensor, classes: Tensor) -> Maps:
    with torch.enable_grad():
        logits, tokens, attention = _with_attention(network, images.requires_grad_())
        *slopes, slope = torch.autograd.grad(_log_odds(logits, classes).sum(), [*attention, tokens])
    with torch.inference_mode():
        flow = _followed([(weights * by).clamp(min=0).mean(dim=1) + _eye(weights) for weights, by in zip(attention, slopes, strict=True)])
        read = _read(network, tokens.shape)
        if network.config.pool == "mean":
            # Here every patch speaks for itself as well: by how far it moves the class away from where the mean patch would leave it, to first order.
            own = tokens - tokens[:, 1:].mean(dim=1, keepdim=True)
            read = read * (own * slope).sum(dim=-1).clamp(min=0)[:, None]
        return _to_patches(read @ flow)


def _followed(steps: list[Tensor]) -> Tensor:
    """The product of the blocks' (B, N, N): what each last token got from each first one."""
    flow = steps[0]
    for step in steps[1:]:
        flow = step @ flow
    return flow


def _read(network: VisionTransformer, shape: torch.Size) -> Tensor:
    """(B, 1, N): which of the last tokens the head reads."""
    read = torch.zeros(shape[0], 1, shape[1])
    read[:, :, 0 if network.config.pool == "cls" else slice(1, None)] = 1.0
    return read


def _to_patches(got: Tensor) -> Maps:
    """(B, 1, N) of all tokens -> (B, h, w) of the patches."""
    side = round((got.shape[-1] - 1) ** 0.5)
    return _scaled(got[:, 0, 1:].reshape(-1, side, side).numpy())


def _eye(weights: Tensor) -> Tensor:
    return torch.eye(weights.shape[-1])


def occlusion(answer: Answer, pixels: npt.NDArray[np.uint8], classes: Sequence[int], *, parts: int = 8) -> Maps:
    """Of whatever ``answer``s. A patch is covered with the image's own mean, so that nothing darker or brighter than the rest appears."""
    side, wanted = pixels.shape[-1], torch.as_tensor(list(classes))
    edges = np.linspace(0, side, parts + 1).round().astype(int)
    falls = np.zeros((len(pixels), parts, parts), np.float32)
    with torch.inference_mode():

        def judged(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            odds: npt.NDArray[np.float32] = _log_odds(torch.from_numpy(answer(images)), wanted).numpy()
            return odds

        before = judged(np.array(pixels))
        for i in range(parts):
            for j in range(parts):
                covered = np.array(pixels)
                rows, columns = slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1])
                covered[:, :, rows, columns] = pixels.mean(axis=(2, 3), keepdims=True).astype(np.uint8)
                falls[:, i, j] = before - judged(covered)
    return _scaled(falls.clip(min=0))


def _log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """(B,) of the class against all others. The logit alone also moves with what all classes share; the probability hardly moves near 1."""
    chosen = torch.nn.functional.one_hot(classes, logits.shape[1]).bool()
    logits = logits.float()
    return logits[chosen] - logits.masked_fill(chosen, -torch.inf).logsumexp(dim=1)


def _scaled(maps: npt.NDArray[np.floating]) -> Maps:
    """To 0..1 each: the least is 0, the most 1. A map without any difference is 0 everywhere."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return ((maps - low) / np.where(high > low, high - low, 1)).astype(np.float32)

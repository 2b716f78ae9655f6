"""Softmax attention, computed the way that the device and the sizes make fastest. ``attend`` is the one place that chooses.

Three choices, each of them exact algebra and held to the written-out formula by tests, forwards and backwards:

    folded  Where a token is no wider than a head, keys and values need not be made at all. With the weights of one head written W,
            q k^T = x (Wq^T Wk) x^T and (p v) Wo^T = (p x) (Wo Wv)^T: the products of the weights are small, and all heads share the tokens as
            their keys and values. A third of the projections' work and two thirds of their memory remain, and the heads of an image
            become rows of one large product.
    tiled   On a CPU in bf16, whole rows of scores for a few images at a time, so that they become probabilities within the cache; these are kept for
            the gradient, or made again, bit for bit, where they are many. PyTorch's fused kernel takes two to three times as long there; in
            float32, where it is the faster one, elsewhere, and in exported graphs it is used (docs/performance.md).
    fused   On a Hopper GPU in bf16, the folded attention and its gradient as two kernels that keep all scores in fast memory
            (``fused_attention``).

Shapes: B batch, N tokens, D dim, h heads, d dim_head; G independent attentions, R rows of queries in each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused_attention

_TILE_BYTES = 2**21
"""Scores that a thread holds at a time, of the order of the cache that a core has to itself. An attention that is larger is held whole."""
_KEPT_BYTES = 2**27
"""Probabilities of one call that are kept for the gradient: a layer of the reference with its batches of 32 has half of that."""


def attend(tokens: Tensor, *, qkv: nn.Linear, proj: nn.Linear, heads: int, first: int | None = None) -> Tensor:
    """Multi-head self-attention with its projections: (B, N, D) -> (B, N, D), or (B, first, D): the outputs of the first tokens, which look at all.

    ``qkv`` has no bias and 3 * h * d rows, ordered (q, k, v), then head, then width. Source: Vaswani et al. 2017, section 3.2.2.
    """
    batch, _, dim = tokens.shape
    dim_head = proj.in_features // heads
    if dim > dim_head:
        q, k, v = split_heads(qkv(tokens), heads=heads)
        return proj(attention(q[:, :, :first], k, v).transpose(1, 2).flatten(2))
    to_scores, to_output = _fold(qkv.weight, proj.weight, heads=heads)
    to_scores = dim_head**-0.5 * to_scores  # less to scale than queries or scores
    if first is None and fused_attention.is_chosen(tokens):
        out = fused_attention.fused(tokens, to_scores, to_output)
        return out + proj.bias.to(out.dtype)
    queries = F.linear(tokens[:, :first], to_scores.flatten(0, 1))
    shared = tokens.to(queries.dtype)[:, None]
    # A row for each token and head: the same memory, whichever way it is looked at.
    mixed = attention(queries.view(batch, 1, -1, dim), shared, shared, scale=1.0)
    return F.linear(mixed.view(queries.shape), to_output.transpose(0, 1).flatten(1), proj.bias)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale * q k^T) v: (B, h, R, d), (B, h, N, d), (B, h, N, d) -> (B, h, R, d). ``scale``: 1 / sqrt(d) where it is not given.

    Source: Vaswani et al. 2017, section 3.2.1.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if _is_tiled(q):
        size = q.numel() // q.shape[-1] * k.shape[-2] * q.element_size()
        keeps = torch.is_grad_enabled() and size <= _KEPT_BYTES
        mixed, _ = _tiled(q.flatten(0, 1).contiguous(), k.flatten(0, 1).contiguous(), v.flatten(0, 1).contiguous(), scale, keeps)
        out: Tensor = mixed.view(q.shape)
        return out
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _is_tiled(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and not fused_attention.is_exported()


def split_heads(qkv: Tensor, *, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, h, N, d), of (B, N, 3 h d)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _fold(qkv: Tensor, proj: Tensor, *, heads: int) -> tuple[Tensor, Tensor]:
    """The products of each head's weights: Wk^T Wq and Wo Wv, each (h, D, D).

    They are made in the precision of the weights, whatever the network runs in: a rounded product is as exact as its rounded factors.
    """
    dim = proj.shape[0]
    query, key, value = qkv.view(3, heads, -1, dim).unbind(0)
    with torch.autocast(qkv.device.type, enabled=False):
        to_scores = torch.bmm(key.transpose(1, 2), query)
        to_output = torch.bmm(proj.view(dim, heads, -1).transpose(0, 1), value)
    return to_scores, to_output


# An operator of its own, so that torch.compile takes it as it is. (G, R, d), (G, N, d), (G, N, d) -> (G, R, d).
@torch.library.custom_op("scanvit::tiled_attention", mutates_args=(), device_types="cpu")
def _tiled(q: Tensor, k: Tensor, v: Tensor, scale: float, keeps: bool) -> tuple[Tensor, Tensor]:
    """The mixed values, and the probabilities (G, R, N) where they are to be kept, else nothing."""
    mixed, scores = torch.empty_like(q), _tile_of_scores(q, k)
    kept = _room_for(q, k, keeps)
    for tile in _tiles(len(q), len(scores)):
        probs = _probs(q[tile], k[tile], scale, out=kept[tile] if keeps else scores)
        torch.bmm(probs, v[tile], out=mixed[tile])
    return mixed, kept


@torch.library.custom_op("scanvit::tiled_attention_backward", mutates_args=(), device_types="cpu")
def _tiled_backward(slope: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    from .cpu_softmax import softmax_gradient_

    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    scores = _tile_of_scores(q, k)
    room = torch.empty_like(scores)
    for tile in _tiles(len(q), len(scores)):
        probs = kept[tile] if len(kept) else _probs(q[tile], k[tile], scale, out=scores)
        slopes = room[: tile.stop - tile.start]
        torch.bmm(probs.transpose(1, 2), slope[tile], out=dv[tile])
        torch.bmm(slope[tile], v[tile].transpose(1, 2), out=slopes)
        softmax_gradient_(slopes, probs)
        torch.bmm(slopes, k[tile], out=dq[tile])
        torch.bmm(slopes.transpose(1, 2), q[tile], out=dk[tile])
    if scale != 1.0:
        dq.mul_(scale)
        dk.mul_(scale)
    return dq, dk, dv


def _tile_of_scores(q: Tensor, k: Tensor) -> Tensor:
    """Room for the scores (T, R, N) of the attentions of one tile: as many for each thread, since whole ones are shared out without a loss, and
    parts of one are not: what a thread has made would lie in another's cache."""
    groups, rows, columns = len(q), q.shape[1], k.shape[1]
    for_each = max(1, _TILE_BYTES // (rows * columns * q.element_size()))
    return q.new_empty(min(groups, for_each * torch.get_num_threads()), rows, columns)


def _room_for(q: Tensor, k: Tensor, keeps: bool) -> Tensor:
    return q.new_empty(len(q), q.shape[1], k.shape[1]) if keeps else q.new_empty(0)


def _tiles(groups: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, groups)) for start in range(0, groups, size)]


def _probs(q: Tensor, k: Tensor, scale: float, *, out: Tensor) -> Tensor:
    """Of one tile, written over ``out``."""
    from .cpu_softmax import softmax_

    scores = out[: len(q)]
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale, out=scores)
    return softmax_(scores)


@_tiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, keeps: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _room_for(q, k, keeps)


@_tiled_backward.register_fake
def _(slope: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *given, ctx.scale, _ = inputs
    ctx.set_materialize_grads(False)  # else the probabilities get slopes, of zeros, as many as they are
    ctx.save_for_backward(*given, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, slope: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    if slope is None:
        return (None,) * 5
    return (*_tiled_backward(slope.contiguous(), *ctx.saved_tensors, ctx.scale), None, None)


_tiled.register_autograd(_gradient, setup_context=_keep)

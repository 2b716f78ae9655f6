"""Attention with folded weights as an operator of its own: the kernels of ``attention_kernels``, their gradient, and when they may be used.

Shapes: B batch, N tokens, D dim, h heads.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .assembler import assembler

ENABLED = True
"""Off: the plain path everywhere (for comparisons)."""

_SHARED_BYTES = 200 * 2**10
"""Of fast memory that a program may ask for: what a Hopper GPU has. Others would need other tiles, that nobody has measured."""


def is_chosen(tokens: Tensor) -> bool:
    """Whether ``fused`` takes tokens (B, N, D) of a folded attention: in bf16 on a GPU that has the room, outside of exported graphs, where the
    tokens are the [CLS] token and 2^k patches, 16 to 256, and D is 16, 32 or 64."""
    if not ENABLED or tokens.device.type != "cuda" or is_exported():
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype
    return dtype == torch.bfloat16 and tokens.shape[1] - 1 in (16, 32, 64, 128, 256) and tokens.shape[2] in (16, 32, 64) and _has_room(tokens.device.index)


# As it is when the graph is made: left to itself, torch.compile takes is_exporting for true, whatever it makes.
@torch.compiler.assume_constant_result
def is_exported() -> bool:
    """Whether this call makes a graph to be exported, which holds no operator of ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


# Marked on a function that is no cache: torch.compile looks through those, mark and all.
@torch.compiler.assume_constant_result
def _has_room(device: int) -> bool:
    return _looked_up(device)


@cache
def _looked_up(device: int) -> bool:
    properties = torch.cuda.get_device_properties(device)
    return properties.major == 9 and properties.shared_memory_per_block_optin >= _SHARED_BYTES and assembler() is not None  # type: ignore[attr-defined]


def fused(tokens: Tensor, to_scores: Tensor, to_output: Tensor) -> Tensor:
    """sum over heads of softmax(x A^T x^T) x O^T: (B, N, D), folded weights A and O (h, D, D) -> (B, N, D), in bf16 or the type of the tokens.

    The scale of the scores is A's.
    """
    dtype = torch.get_autocast_dtype(tokens.device.type) if torch.is_autocast_enabled(tokens.device.type) else tokens.dtype
    out: Tensor = _fused(*(part.to(dtype).contiguous() for part in (tokens, to_scores, to_output)))[0]
    return out


# The kernels are imported by the call, since Triton is there only where they can run.
@torch.library.custom_op("scanvit::fused_attention", mutates_args=())
def _fused(tokens: Tensor, to_scores: Tensor, to_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .attention_kernels import forward

    return forward(tokens, to_scores, to_output)


@torch.library.custom_op("scanvit::fused_attention_backward", mutates_args=())
def _fused_backward(slope: Tensor, tokens: Tensor, to_scores: Tensor, to_output: Tensor, mixed: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .attention_kernels import backward

    return backward(slope, tokens, to_scores, to_output, mixed, lse)


@_fused.register_fake
def _(tokens: Tensor, to_scores: Tensor, to_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (batch, n_tokens, dim), heads = tokens.shape, to_scores.shape[0]
    lse = tokens.new_empty(batch, heads, n_tokens - 1, dtype=torch.float32)
    return torch.empty_like(tokens), tokens.new_empty(batch, n_tokens, heads, dim), lse


@_fused_backward.register_fake
def _(slope: Tensor, tokens: Tensor, to_scores: Tensor, to_output: Tensor, mixed: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(tokens), torch.empty_like(to_scores), torch.empty_like(to_output)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs, *output[1:])


def _gradient(ctx, slope: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
    slopes: tuple[Tensor, Tensor, Tensor] = _fused_backward(slope.contiguous(), *ctx.saved_tensors)
    return slopes


_fused.register_autograd(_gradient, setup_context=_keep)

"""The transformer (Vaswani et al. 2017; the pre-LayerNorm residual form of Dosovitskiy et al. 2021, equations 2 and 3).

Shapes: B batch, N tokens, D dim, h heads, M mlp_dim.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .attention import attend, split_heads

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D), with an inner width of heads * dim_head.

    The rows of ``qkv`` are ordered (q, k, v), then head, then the head's width. It has no bias; the projection back has one.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.proj = nn.Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, first: int | None = None) -> Tensor:
        """With ``first``, the outputs of so many tokens from the start alone; all N are still looked at."""
        return self.dropout(attend(tokens, qkv=self.qkv, proj=self.proj, heads=self.heads, first=first))

    def weights(self, tokens: Tensor) -> Tensor:
        """How much each token looks at each other, (B, h, N, N), rows sum to 1: for looking at, since it costs N^2 of memory."""
        q, k, _ = split_heads(self.qkv(tokens), heads=self.heads)
        return (q @ k.transpose(-2, -1) * self.dim_head**-0.5).softmax(dim=-1)

    def mix(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """The output for given weights: ``mix(weights(tokens), tokens)`` is ``forward(tokens)`` up to rounding."""
        mixed = weights @ split_heads(self.qkv(tokens), heads=self.heads)[2]
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers on each token alone: (B, N, D) -> (B, N, M) -> (B, N, D)."""

    def __init__(self, dim: int, *, mlp_dim: int, activation: Literal["relu", "gelu"], dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.act = _ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(tokens)))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a residual branch for whole images and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        mask = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): (B, N, D) -> (B, N, D), or (B, first, D) where no more are wanted."""

    def __init__(self, dim: int, *, attn: Attention, mlp: FeedForward, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, first: int | None = None) -> Tensor:
        tokens = tokens[:, :first] + self.drop_path(self.attn(self.norm1(tokens), first))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

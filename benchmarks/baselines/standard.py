"""The same network as the field's collections of Vision Transformers write it: fused attention from PyTorch, a DataLoader with workers, fused Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .original import FolderDataset


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dim_head: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * num_heads * dim_head, bias=False)
        self.proj = nn.Linear(num_heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads, dim_head)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class StandardNetwork(nn.Module):
    def __init__(self, *, widths: Sequence[int], dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, size_px: int, classes: int) -> None:
        super().__init__()
        strides = [1] * (len(widths) - 2) + [2, 2]
        stem: list[nn.Module] = []
        for before, width, stride in zip([1, *widths], widths, strides, strict=False):
            stem += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem)
        self.patch_embed = nn.Linear(widths[-1], dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size_px // 4) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, dim_head, mlp_dim) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(self.stem(images).flatten(2).transpose(1, 2))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def train(
    network: nn.Module, dataset: FolderDataset, order: Sequence[int], *, batch_size: int, lr: float, bf16: bool, report: Callable[[float], None], device: str
) -> None:
    """Once through ``order``, with a report of the loss after each step."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, sampler=order, num_workers=2 if device == "cpu" else 8, pin_memory=device != "cpu")
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    for batch in loader:
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(loss.item())

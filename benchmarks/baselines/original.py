"""The original's way: files read and decoded at every visit, attention by einsum with all its scores, Adam, figures fetched at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class FolderDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images in class folders, as gray pixels of ``size_px``, normalised to -1..1."""

    def __init__(self, paths: Sequence[Path], targets: Sequence[int], *, size_px: int) -> None:
        self.paths, self.targets, self.size_px = paths, targets, size_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            gray = image.convert("L").resize((self.size_px, self.size_px), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(gray, np.float32))[None] / 255 - 0.5) / 0.5, self.targets[index]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part.reshape(b, n, self.heads, -1).permute(0, 2, 1, 3) for part in self.to_qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        out = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
        return self.to_out(out.permute(0, 2, 1, 3).reshape(b, n, -1))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, dim_head)
        self.norm2 = nn.LayerNorm(dim)
        self.net = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Dropout(0.0), nn.Linear(mlp_dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.norm1(x)) + x
        return self.net(self.norm2(x)) + x


class OriginalNetwork(nn.Module):
    def __init__(self, *, widths: Sequence[int], dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, size_px: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for index, width in enumerate(widths):
            stride = 2 if index >= len(widths) - 2 else 1
            layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.conv_stem = nn.Sequential(*layers)
        self.to_patch_embedding = nn.Linear(before, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (size_px // 4) ** 2 + 1, dim))
        self.layers = nn.ModuleList(Layer(dim, heads, dim_head, mlp_dim) for _ in range(depth))
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_stem(images)
        x = self.to_patch_embedding(x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]))
        x = torch.cat([self.cls_token.repeat(len(x), 1, 1), x], dim=1) + self.pos_embedding
        for layer in self.layers:
            x = layer(x)
        return self.mlp_head(x[:, 0])


def train(
    network: nn.Module, dataset: FolderDataset, order: Sequence[int], *, batch_size: int, lr: float, bf16: bool, report: Callable[[float], None], device: str
) -> None:
    """Once through ``order``, with a report of the loss after each step."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, sampler=order)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    right = seen = 0
    for batch in loader:
        images, targets = (part.to(device) for part in batch)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = network(images)
            loss = F.nll_loss(F.log_softmax(logits, dim=1), targets)
        loss.backward()
        optimizer.step()
        right += (logits.argmax(1) == targets).sum().item()
        seen += len(targets)
        report(loss.item())

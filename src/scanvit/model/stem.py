"""The convolutional stem (Xiao et al. 2021, "Early convolutions help transformers see better", section 4).

Shapes: B batch, C channels, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError

REDUCTION = 4
"""The stem makes height and width this many times smaller: two blocks of stride 2."""


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        # The bias is spent (the normalisation takes it away again), but the reference network has it.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)))


class ConvStem(nn.Sequential):
    """One block for each width, the last two with stride 2: (B, C, H, W) -> (B, widths[-1], H/4, W/4).

    Keeps the memory format of its input, so a channels-last network stays channels-last.
    """

    def __init__(self, widths: Sequence[int], *, channels: int) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(f"stem_widths is {tuple(widths)}.", hint="Give two widths or more, each of them at least 1; the last two have stride 2.")
        inputs = (channels, *widths[:-1])
        strides = (1,) * (len(widths) - 2) + (2, 2)
        super().__init__(*(ConvBlock(c_in, c_out, stride=stride) for c_in, c_out, stride in zip(inputs, widths, strides, strict=True)))

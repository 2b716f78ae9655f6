"""The network: convolutional stem, tokens, transformer, head (Dosovitskiy et al. 2021, section 3.1, with a stem in place of patches).

Shapes: B batch, C channels, H W height and width in pixels, N = H/4 * W/4 patch tokens, D dim, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import ModelConfig
from ..core.errors import ConfigError
from .stem import REDUCTION, ConvStem
from .transformer import Attention, Block, FeedForward


class VisionTransformer(nn.Module):
    """Normalised images (B, C, H, W), float -> logits (B, K).

    At the reference size (ModelConfig's defaults, 64 px, one channel, nine classes): 5,014,089 parameters. Weights start from PyTorch's
    defaults, the position embeddings and the [CLS] token from a normal distribution of ``config.pos_embed_std`` (1 in the reference).

    Raises ConfigError for an image size that the stem cannot divide and, on a call, for images of another shape.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, image_size_px: int, channels: int) -> None:
        super().__init__()
        if image_size_px < REDUCTION or image_size_px % REDUCTION:
            raise ConfigError(f"image_size_px is {image_size_px}.", hint=f"The network needs a multiple of {REDUCTION}, for example 64.")
        if num_classes < 1:
            raise ConfigError(f"The number of classes is {num_classes}.", hint="A classifier needs at least one class.")
        self.config = config
        self.image_shape = (channels, image_size_px, image_size_px)
        self.num_classes = num_classes
        n_tokens = (image_size_px // REDUCTION) ** 2
        self.stem = ConvStem(config.stem_widths, channels=channels)
        self.patch_embed = nn.Linear(config.stem_widths[-1], config.dim)
        self.cls_token = nn.Parameter(config.pos_embed_std * torch.randn(1, 1, config.dim))
        self.pos_embed = nn.Parameter(config.pos_embed_std * torch.randn(1, 1 + n_tokens, config.dim))
        self.pos_drop = nn.Dropout(config.emb_dropout)
        self.blocks = nn.Sequential(*(_block(config, index) for index in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.image_shape:
            raise ConfigError(
                f"Images of shape {tuple(images.shape)} do not fit.", hint=f"The network takes images of (channels, height, width) = {self.image_shape}."
            )
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads: (B, C, H, W) -> (B, D)."""
        return self._features(self.stem(images))

    def features_and_traits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``features``, and how the stem sees the images, (B, 2 S): the mean and the standard deviation of each of its S maps over all positions.

        What kind of picture it is shows in them, of which little is left in what the head reads (``evaluation.outliers``).
        """
        maps = self.stem(images)
        return self._features(maps), _traits(maps)

    def traits(self, images: Tensor) -> Tensor:
        """Those alone: a small part of the work."""
        return _traits(self.stem(images))

    @property
    def n_traits(self) -> int:
        return 2 * self.config.stem_widths[-1]

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): the [CLS] token, then the patch tokens row by row, with their position embeddings."""
        return self._tokens(self.stem(images))

    def _features(self, maps: Tensor) -> Tensor:
        tokens = self._tokens(maps)
        *others, last = self.blocks
        for block in others:
            tokens = block(tokens)
        # Of the last block nothing but the [CLS] token's output is read where that is what is pooled: the rest is not made.
        return self.norm(self.pool(last(tokens, first=1 if self.config.pool == "cls" else None)))

    def _tokens(self, maps: Tensor) -> Tensor:
        patches = self.patch_embed(maps.permute(0, 2, 3, 1).flatten(1, 2))
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return self.pos_drop(tokens + self.pos_embed)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, D) -> (B, D): the [CLS] token or the mean of the patch tokens."""
        return tokens[:, 0] if self.config.pool == "cls" else tokens[:, 1:].mean(dim=1)


def _traits(maps: Tensor) -> Tensor:
    return torch.cat((maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)), dim=1)


def at_shifts(images: Tensor, most_px: int) -> Tensor:
    """(B, C, H, W) -> (V * B, C, H, W), V = (2 * most_px + 1)^2: all images at one shift, then at the next. The edge goes on into what comes in."""
    height, width = images.shape[-2:]
    padded, starts = F.pad(images, (most_px,) * 4, mode="replicate"), range(2 * most_px + 1)
    return torch.cat([padded[..., top : top + height, left : left + width] for top in starts for left in starts])


def _block(config: ModelConfig, index: int) -> Block:
    # The rate rises linearly from 0 in the first block; a single block is the last one.
    depth_share = index / (config.depth - 1) if config.depth > 1 else 1.0
    return Block(
        config.dim,
        attn=Attention(config.dim, heads=config.heads, dim_head=config.dim_head, dropout=config.dropout),
        mlp=FeedForward(config.dim, mlp_dim=config.mlp_dim, activation=config.activation, dropout=config.dropout),
        drop_path=config.drop_path * depth_share,
    )

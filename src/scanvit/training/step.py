"""What is computed on a batch, as functions of tensors alone: they run one operation at a time, or compiled as one graph.

Nothing here waits for the device: no value is read, nothing is copied from it, and every shape follows from the batch's.

Shapes: B batch, C channels, H W height and width in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Experiment
from ..core.contract import PixelContract
from ..data.augment import augment, mix

Step = Callable[..., tuple[Tensor, Tensor]]


def training_losses(
    network: nn.Module, pixels: Tensor, targets: Tensor, *, class_weights: Tensor, contract: PixelContract, experiment: Experiment
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (B, C, H, W) and targets int64 (B,) -> weighted cross-entropy of each image (B,), and its logits (B, K), float32.

    With mixup the losses are those of the mixed images; the logits as well.
    """
    images = _channels_last(augment(contract.normalize(pixels), experiment.augment))
    smoothing, mixup = experiment.loss.label_smoothing, experiment.augment.mixup

    def losses(logits: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(logits, truth, reduction="none", label_smoothing=smoothing) * class_weights[truth]

    if mixup:
        images, partner, share = mix(images, mixup)
        logits = network(images).float()
        return share * losses(logits, targets) + (1 - share) * losses(logits, targets[partner]), logits
    logits = network(images).float()
    return losses(logits, targets), logits


def _channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W), the same values. A single channel lies in memory as both formats would have it; PyTorch takes that for the other one, and turns
    the slopes of the first convolution round: 2 % of a step on a GPU. The strides alone tell them apart."""
    if images.shape[1] == 1:
        return images.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def evaluation_losses(network: nn.Module, pixels: Tensor, targets: Tensor, *, contract: PixelContract) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (B, C, H, W) and targets int64 (B,) -> cross-entropy of each image (B,), and its logits (B, K), float32."""
    logits = network(contract.normalize(pixels)).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits


def compiled(step: Step, *, batch_size: int, cuda_graphs: bool) -> Step:
    """``step`` as one graph for batches of ``batch_size`` images. A smaller one, the last of an epoch, goes through ``step`` as it is: nothing is
    dropped or padded, and nothing is compiled for it.

    Random numbers stay those of the plain step. ``cuda_graphs``: a GPU replays all kernels of the step at one call; where a batch is so small
    that it works faster than it is told what to do.
    """
    options: dict[str, Any] = {"fallback_random": True}
    if cuda_graphs:
        options["triton.cudagraphs"] = True
    whole: Step = torch.compile(step, fullgraph=True, dynamic=False, options=options)

    def choose(network: nn.Module, pixels: Tensor, targets: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
        return (whole if len(pixels) == batch_size else step)(network, pixels, targets, **settings)

    return choose


class Confusion:
    """Loss and confusion matrix over a rank's images, added up on its device and read once."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, losses: Tensor, logits: Tensor, targets: Tensor) -> None:
        cells = targets * logits.shape[1] + logits.argmax(1)
        self.loss += losses.double().sum()
        self.counts.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def over_ranks(self, reduce: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        """The mean loss and the confusion matrix (K, K), rows: truth, columns: prediction. ``reduce`` adds a tensor up over all ranks."""
        counts, loss = reduce(self.counts), reduce(self.loss)
        return float(loss / counts.sum()), counts

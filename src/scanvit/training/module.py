"""The LightningModule: what one training, validation or test step computes, and what is known at an epoch's end."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..core.config import Experiment
from ..core.contract import PixelContract
from ..core.runtime import derive_seed
from ..data.loader import Batch, Position, steps_per_epoch
from ..model.vit import VisionTransformer
from .recipe import Pairs, averaged_pairs, build_optimizer, class_weights, ema_decay, lr_factor, lr_scale, update_average
from .step import Confusion, Step, compiled, evaluation_losses, training_losses
from .world import broadcast_buffers


class ClassificationModule(L.LightningModule):
    """A Vision Transformer with its recipe. With EMA on, validation, test and ``checkpoint.pth`` use the averaged weights."""

    class_weights: Tensor

    def __init__(self, experiment: Experiment, *, class_names: tuple[str, ...], contract: PixelContract, train_counts: Tensor) -> None:
        """``train_counts``: training images a class, (K,)."""
        super().__init__()
        self.experiment, self.class_names, self.contract = experiment, class_names, contract
        network = VisionTransformer(experiment.model, num_classes=len(class_names), image_size_px=contract.image_size_px, channels=contract.channels)
        self.network: VisionTransformer = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False) if experiment.ema.decay else None
        self._pairs: tuple[Pairs, Pairs] | None = None
        self.train_images = int(train_counts.sum())
        weights = class_weights(train_counts.numpy(), experiment.loss)
        self.register_buffer("class_weights", torch.from_numpy(weights), persistent=False)
        # Sums over this rank's images of the unfinished epoch: loss, right answers, images. No buffer: DDP overwrites those with rank zero's.
        self.train_sums = torch.zeros(3, dtype=torch.float64)
        self.train_losses: Step = training_losses
        self.eval_losses: Step = evaluation_losses
        self.start = Position()
        """Where the processes of this world took the training up."""
        self.epoch_metrics: dict[str, float] = {}
        """Of the last finished epoch, the same on all ranks; see docs/architecture.md for the names."""

    def compile_steps(self, *, eval_batch_size: int, cuda_graphs: bool) -> None:
        """Make one graph of each step; see ``step.compiled``."""
        self.train_losses = compiled(training_losses, batch_size=self.experiment.trainer.per_device_batch_size, cuda_graphs=cuda_graphs)
        self.eval_losses = compiled(evaluation_losses, batch_size=eval_batch_size, cuda_graphs=cuda_graphs)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose figures count: the average if there is one."""
        return self.network if self.average is None else self.average

    @property
    def steps_per_epoch(self) -> int:
        batch_size = self.experiment.trainer.per_device_batch_size
        return steps_per_epoch(self.train_images, per_device_batch_size=batch_size, world_size=self.trainer.world_size)

    @property
    def position(self) -> Position:
        return self.position_at(self.global_step)

    def position_at(self, step: int) -> Position:
        """Where training stands after ``step`` optimizer steps: this world's, on top of those before ``start``."""
        return self.start.at(step, **self._share)

    def schedule_step(self, step: int) -> int:
        """``step`` in steps of this world: what the learning rate follows, so that a world that changes keeps to the epochs."""
        return self.position_at(step).as_steps(**self._share)

    @property
    def _share(self) -> dict[str, int]:
        return {"n": self.train_images, "global_batch_size": self.experiment.trainer.per_device_batch_size * self.trainer.world_size}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float (B, C, H, W) -> logits (B, K)."""
        return self.evaluated(images)

    # Training

    def on_fit_start(self) -> None:
        self._pairs = None
        self.train_sums = self.train_sums.to(self.device)

    def on_train_start(self) -> None:
        # A checkpoint brings the rate at which the world that wrote it would go on; in the same world it is this very number.
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        for group, base, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Augmentation and dropout become a function of (seed, step, rank): there is no random state to save or restore.
        torch.manual_seed(derive_seed("step", self.experiment.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pixels, targets, weights = batch
        settings = {"class_weights": self.class_weights, "contract": self.contract, "experiment": self.experiment}
        losses, logits = self.train_losses(self.network, pixels, targets, **settings)
        with torch.no_grad():
            seen = weights > 0
            right = (logits.argmax(1) == targets) & seen
            self.train_sums += torch.stack([(losses * seen).sum(), right.sum(), seen.sum()]).double()
        return (losses * weights).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            # global_step already counts the step just made
            self._pairs = self._pairs or averaged_pairs(self.average, self.network)
            update_average(self._pairs, ema_decay(self.global_step - 1, self.experiment.ema.decay))

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By norm. Lightning's own refuses a fused optimizer under mixed precision, because of a scaler of gradients that bf16 does not have."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.network, self.experiment.optimizer)
        # The scale is no part of the optimizer's state: a world of another size goes on with its own.
        scale = lr_scale(self.experiment.optimizer, global_batch_size=self._share["global_batch_size"])
        steps, epochs = self.steps_per_epoch, self.experiment.trainer.max_epochs
        schedule = LambdaLR(
            optimizer, lambda step: scale * lr_factor(self.schedule_step(step), self.experiment.schedule, steps_per_epoch=steps, max_epochs=epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        loss, right, images = self._summed(self.train_sums).tolist()
        self.epoch_metrics |= {"train_loss": loss / images, "train_accuracy": right / images}
        self.train_sums.zero_()

    def _summed(self, values: Tensor) -> Tensor:
        """Over all ranks."""
        return torch.as_tensor(self.trainer.strategy.reduce(values.clone(), reduce_op="sum"))

    # A checkpoint inside an epoch carries the sums of all ranks; rank zero takes them up again.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = self._summed(self.train_sums).tolist()
        checkpoint["position"] = asdict(self.position)
        checkpoint["precision"] = self.experiment.trainer.precision

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "position" in checkpoint:  # a checkpoint from before 0.2 goes on in a world of the same size only
            self.start = Position(**checkpoint["position"])
            self._count_batches_anew(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"])
        sums = torch.tensor(checkpoint["train_sums"], dtype=torch.float64)
        self.train_sums = (sums if self.global_rank == 0 else torch.zeros_like(sums)).to(self.device)

    def _count_batches_anew(self, batches: dict[str, int]) -> None:
        """Lightning counts an unfinished epoch in batches made; a world of another size makes others of the images that are left."""
        made = self.steps_per_epoch - -(-(self.train_images - self.start.images) // self._share["global_batch_size"])
        if self.start.images and made != batches["processed"]:
            shift = made - batches["processed"]
            for stage in batches:
                batches[stage] += shift

    # Validation

    def on_validation_epoch_start(self) -> None:
        broadcast_buffers(self.network)
        if self.average is not None:
            broadcast_buffers(self.average)
        self.confusion = Confusion(len(self.class_names), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pixels, targets, _ = batch
        losses, logits = self.eval_losses(self.evaluated, pixels, targets, contract=self.contract)
        self.confusion.add(losses, logits, targets)

    def on_validation_epoch_end(self) -> None:
        loss, counts = self.confusion.over_ranks(self._summed)
        self.epoch_metrics = {"val_loss": loss} | per_class_metrics(counts, self.class_names)


def per_class_metrics(confusion: Tensor, class_names: tuple[str, ...]) -> dict[str, float]:
    """Accuracy, and precision and recall a class, from a confusion matrix (K, K), rows: truth. 0/0 is NaN: unknown, not zero."""
    confusion = confusion.double()
    right = confusion.diagonal()
    values = {"val_accuracy": float(right.sum() / confusion.sum())}
    for name, precision, recall in zip(class_names, right / confusion.sum(0), right / confusion.sum(1), strict=True):
        values[f"val_precision/{name}"] = float(precision)
        values[f"val_recall/{name}"] = float(recall)
    return values

"""The experiment: one tree of frozen settings. The defaults are the reference recipe (docs/architecture.md).

Every leaf can be set from a YAML file or by ``--set section.key=value``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

Precision = Literal["32-true", "bf16-mixed"]
_FORBID = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
_DAY_S = 86_400.0
Count = Annotated[int, Field(strict=True, ge=1, le=4096)]
"""Of processes or threads. Strict: true is no 1."""
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class DataConfig:
    pack: str | None = None
    """Path of the pack folder. ``--pack`` sets it."""
    fingerprint: str | None = None
    """Of the pack that the run was started with; written by the run, checked when it is resumed or repeated."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class ModelConfig:
    """A Vision Transformer behind a convolutional stem. Image size, channels and classes come from the pack."""

    stem_widths: tuple[int, ...] = Field(default=(64, 64, 128, 128), min_length=2)
    """Output channels of the 3x3 blocks. The last two have stride 2, those before them stride 1."""
    dim: int = Field(default=64, ge=1)
    """Width of a token."""
    depth: int = Field(default=16, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(default=16, ge=1)
    dim_head: int = Field(default=64, ge=1)
    """Width of one head; the inner width of attention is heads * dim_head."""
    mlp_dim: int = Field(default=256, ge=1)
    """Hidden width of the feed-forward layers."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the feed-forward layers (the stem always uses ReLU)."""
    pool: Literal["cls", "mean"] = "cls"
    """What the head reads: the [CLS] token or the mean of all patch tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After the attention projection and inside the feed-forward layers."""
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    """After the position embedding."""
    pos_embed_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the position embeddings and the [CLS] token at the start. 0.02 learns far faster (docs/experiments.md)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: probability of dropping a residual branch in the last block, rising linearly from 0."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class OptimizerConfig:
    name: Literal["adam", "adamw"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How lr follows the global batch size: not at all, in proportion to it (Goyal et al. 2017, for SGD), or to its square root (for Adam:
    Malladi et al. 2022). Large batches want warm-up as well (schedule.warmup_epochs)."""
    lr_batch_size: int = Field(default=32, ge=1)
    """The global batch size at which lr holds as it is written."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Applied to matrices and kernels only: never to biases, norms, position embeddings or the [CLS] token."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class ScheduleConfig:
    name: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Linear rise from 0; counted in epochs, applied per optimizer step."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where the cosine ends, as a share of lr."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class LossConfig:
    """Cross-entropy on logits, applied once."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced", "sqrt"] = "none"
    """balanced: 1 / frequency; sqrt: its square root. Scaled to a mean of 1 over the training images."""


def _can_be_drawn(alpha: float) -> float:
    """For a smaller alpha, both gamma draws underflow in float32, and images are mixed half and half instead of hardly at all."""
    if alpha and not 0.01 <= alpha <= 1000:
        raise PydanticCustomError("mixup", "input should be 0 (off), or 0.01 to 1000: others cannot be drawn in float32")
    return alpha


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class AugmentConfig:
    """Random changes of training images, drawn on the device. All zero: none.

    No vertical flip and no large rotation: they make no X-ray or B-scan that exists.
    """

    rotate_deg: float = Field(default=0.0, ge=0, le=45)
    """Largest angle, degrees, either way."""
    shift: float = Field(default=0.0, ge=0, le=0.5)
    """Largest shift, as a share of the side."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Zoom between 1 - scale and 1 + scale."""
    hflip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left and right. Right for B-scans; for chest X-rays it mirrors the heart."""
    brightness: float = Field(default=0.0, ge=0, le=1)
    """Largest offset, as a share of the full pixel range."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Factor about the image's mean between 1 - contrast and 1 + contrast."""
    gamma: float = Field(default=0.0, ge=0, le=4)
    """Exponent on the pixels as shares of the full range, between 1 / (1 + gamma) and 1 + gamma: another film, another exposure curve."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Largest standard deviation of Gaussian noise, as a share of the full pixel range."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability of blanking a rectangle of 2 to 20 % of the area."""
    mixup: Annotated[float, AfterValidator(_can_be_drawn)] = 0.0
    """alpha of mixup's Beta distribution (Zhang et al. 2018), 0.01 to 1000; 0: off."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class EmaConfig:
    decay: float = Field(default=0.0, ge=0, lt=1)
    """Of the exponential moving average of the weights, per optimizer step; 0: off. When on, it is validated and kept."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class InferenceConfig:
    """How the trained network is asked, wherever it is used: part of the checkpoint and of every export."""

    shift_px: int = Field(default=0, ge=0, le=4)
    """An image is read at every shift of up to this many pixels in both directions, and what the head reads is averaged; 1: nine passes in place
    of one. What is fitted on val is fitted on these averages. 0: once, as it is. Training, val_loss and early stopping read each image once.
    For networks that were trained with augment.shift."""

    @property
    def passes(self) -> int:
        """How often the network reads an image."""
        return (2 * self.shift_px + 1) ** 2


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class TrainerConfig:
    max_epochs: int = Field(default=12, ge=1)
    per_device_batch_size: int = Field(default=32, ge=1)
    """Images a process and optimizer step; times the number of processes it is the global batch size."""
    eval_batch_size: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = "auto"
    """Images at a time in validation. auto: 2^18 pixels on a CPU and 2^22 on a GPU, at 64 px 64 and 1,024 images."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count | Literal["auto"] = "auto"
    """Processes a node. auto: every GPU, or one process on a CPU."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines; start the same command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set (docs/reliability.md)."""
    sync_batchnorm: bool = False
    """Batch statistics over the images of all processes instead of each its own."""
    timeout_s: float = Field(default=120.0, ge=1, le=7 * _DAY_S)
    """How long a process waits for the others before it takes one for lost."""
    threads: Count | Literal["auto"] = "auto"
    """CPU threads a process. auto: the cores, shared among the processes of a node. A small network is as fast with 1, and undisturbed by others."""
    precision: Precision | Literal["auto"] = "auto"
    """auto: bf16-mixed on a GPU and on a CPU with instructions for bf16 (AVX-512 BF16 or AMX), 32-true on any other; decided when a run begins, so
    that one that goes on elsewhere keeps it. Weights, their updates, losses and checkpoints are float32 in both. 32-true gives the same
    figures on CPUs of either kind, up to rounding."""
    gradient_clip_norm: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the gradient; 0: off."""
    early_stopping_patience: int = Field(default=0, ge=0)
    """Epochs without a better val_loss before training ends; 0: off."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between checkpoints inside an epoch (one is always written at its end)."""
    log_every_n_steps: int = Field(default=10, ge=1)
    compile: bool = False
    """Make one graph of the pixels' way to the loss, for batches of the full size: faster steps after a first one that takes up to a minute.
    The last batch of an epoch goes without."""
    cuda_graphs: bool = False
    """With compile, on a GPU: replay a step's kernels at one call. For small networks and batches, which leave a GPU waiting for its orders."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class TrackingConfig:
    mlflow: bool = True
    """Copy events.jsonl to MLflow: MLFLOW_TRACKING_URI, or a SQLite file beside the run folder."""
    experiment_name: str = Field(default="scanvit", pattern=r"\S")
    drain_timeout_s: float = Field(default=30.0, ge=0, le=_DAY_S)
    """How long the end of a run waits for the tracking server before leaving the rest to ``scanvit track sync``."""
    system_metrics_every_s: float = Field(default=10.0, ge=0, le=_DAY_S)
    """Between samples of CPU, memory and GPU use; 0: off."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Experiment:
    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    seed: int = Field(default=42, ge=0, lt=2**31)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

"""The contestants of the training and inference benchmarks: scanvit as its command runs it, and the baselines, from the same weights and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from scanvit.core.config import Experiment
from scanvit.core.loading import experiment_from_dict, experiment_to_dict, load_experiment
from scanvit.core.runtime import derive_seed, usable_cores
from scanvit.data.loader import epoch_order
from scanvit.data.pack import Pack
from scanvit.data.prepare import prepare
from scanvit.model.vit import VisionTransformer
from scanvit.training.progress import Progress

from .baselines import original, standard

Report = Callable[[float], None]
BASELINES = {"original": (original.OriginalNetwork, original.train), "standard": (standard.StandardNetwork, standard.train)}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all contestants are given. Plain data: it goes to other processes."""

    folder: Path
    """With ``images/CLASS/NAME.png`` and ``pack``."""
    experiment: dict[str, object]

    @property
    def pack(self) -> Pack:
        return Pack.open(self.folder / "pack")

    def settings(self) -> Experiment:
        return experiment_from_dict(self.experiment)


def make_setup(folder: Path, *settings: str, images: int, size_px: int = 64, classes: int = 9, seed: int = 0) -> Setup:
    """Noise with the mean of its class, as PNG files and as a pack of the same pixels. Contestants train for less than an epoch."""
    generator = np.random.default_rng(seed)
    for index in range(images):
        path = folder / "images" / f"class-{index % classes}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = 60 + 15 * (index % classes)
        Image.fromarray(generator.integers(level - 50, level + 50, (size_px, size_px)).clip(0, 255).astype(np.uint8)).save(path)
    prepare(folder / "images", folder / "pack", settings={"image_size_px": size_px}, workers=1)
    experiment = load_experiment("reference", [*settings, "trainer.log_every_n_steps=1", "tracking.mlflow=false", "tracking.system_metrics_every_s=0"])
    return Setup(folder=folder, experiment=experiment_to_dict(experiment))


def reference_network(setup: Setup) -> VisionTransformer:
    """The network that ``fit`` starts from."""
    experiment, pack = setup.settings(), setup.pack
    torch.manual_seed(derive_seed("init", experiment.seed))
    contract = pack.contract
    return VisionTransformer(experiment.model, num_classes=pack.num_classes, image_size_px=contract.image_size_px, channels=contract.channels)


def baseline_network(kind: str, setup: Setup) -> nn.Module:
    """A baseline's network with the weights of ours."""
    ours = reference_network(setup)
    model = asdict(ours.config)
    sizes = {name: model[name] for name in ("dim", "depth", "heads", "dim_head", "mlp_dim")}
    theirs: nn.Module = BASELINES[kind][0](widths=model["stem_widths"], size_px=ours.image_shape[-1], classes=ours.num_classes, **sizes)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.shape == other.shape
            other.copy_(mine)
    return theirs


def train_baseline(report: Report, kind: str, setup: Setup, bf16: bool, device: str = "cpu") -> None:
    torch.set_num_threads(usable_cores())
    experiment, pack = setup.settings(), setup.pack
    rows = pack.rows("train", "path")["path"].to_pylist()
    dataset = original.FolderDataset([setup.folder / "images" / path for path in rows], pack.targets("train").tolist(), size_px=pack.contract.image_size_px)
    order = epoch_order(len(rows), seed=experiment.seed, epoch=0).tolist()
    network = baseline_network(kind, setup).train().to(device)
    settings = {"batch_size": experiment.trainer.per_device_batch_size, "lr": experiment.optimizer.lr, "bf16": bf16, "device": device}
    BASELINES[kind][1](network, dataset, order, report=report, **settings)


class _Turns(Progress):
    """``fit`` tells its progress bar the loss of every step; this one lets the next step wait."""

    report: Report

    def __init__(self, **_: object) -> None:
        super().__init__(show=False)

    def rate(self, images_per_s: float, loss: float) -> None:
        type(self).report(loss)


def train_scanvit(report: Report, setup: Setup, precision: str) -> None:
    """``fit`` itself, with all that it does in a step."""
    from scanvit.training import fit
    from scanvit.training.run_folder import bind, open_run

    pack = setup.pack
    settings = setup.settings()
    experiment = bind(replace(settings, trainer=replace(settings.trainer, precision=precision)), pack)  # type: ignore[arg-type]
    run_dir = setup.folder / f"run-{precision}"
    open_run(run_dir, experiment)
    _Turns.report = staticmethod(report)  # type: ignore[assignment]
    with mock.patch.object(fit, "Progress", _Turns):
        fit.fit(experiment, pack, run_dir)

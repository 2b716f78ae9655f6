"""A small real run on a small real pack: what evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanvit.core.config import DataConfig, Experiment, ModelConfig, TrackingConfig, TrainerConfig
from scanvit.core.contract import PixelContract
from scanvit.core.events import EventLog
from scanvit.core.loading import experiment_to_dict, experiment_to_yaml
from scanvit.data.manifest import write_manifest
from scanvit.data.pack import seal_pack
from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.scoring import compute_scores
from scanvit.model.checkpoint import save_checkpoint
from scanvit.model.vit import VisionTransformer

CONTRACT = PixelContract(image_size_px=16)
SPLIT_SIZES = {"train": 4, "val": 9, "test": 31, "final_eval": 0}
MODEL = ModelConfig(stem_widths=(4, 4), dim=8, depth=1, heads=1, dim_head=8, mlp_dim=8)


@dataclass(frozen=True)
class JudgedRun:
    run_dir: Path
    pack: Path
    fingerprint: str


def build_pack(
    folder: Path,
    class_names: Sequence[str],
    *,
    seed: int = 0,
    source: str = "clinic",
    gates: list[dict[str, Any]] | None = None,
    contract: PixelContract = CONTRACT,
    attributes: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Callable[[str, int], Any]] | None = None,
) -> None:
    """Random images, two of each patient, classes in turn. ``attributes``: {name: values in turn}; ``columns``: {name: its value by split and row}."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    made: dict[str, list[Any]] = {}
    for split, size in SPLIT_SIZES.items():
        np.save(folder / f"{split}.npy", random.integers(0, 256, size=(size, *contract.shape), dtype=np.uint8))
        for row in range(size):
            values = {
                "image_id": f"{split}-{row:03d}",
                "class_name": class_names[(row // 2) % len(class_names)],
                "split": split,
                "patient_id": f"{source}:{split}{row // 2}",
                "source": source,
                "path": f"{split}/{row}.png",
                "sha256": f"{row:064x}",
                "perceptual_hash": f"{row:064x}",
                "width_px": 16,
                "height_px": 16,
                "format": "PNG",
                "row": row,
            }
            values |= {name: given[row % len(given)] for name, given in (attributes or {}).items()}
            values |= {name: given(split, row) for name, given in (columns or {}).items()}
            for name, value in values.items():
                made.setdefault(name, []).append(value)
    write_manifest(folder / "manifest.parquet", made)
    if gates is not None:
        (folder / "audit.json").write_text(json.dumps({"format": 1, "gates": gates}))
    seal_pack(folder, class_names=tuple(class_names), contract=contract, settings={})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., JudgedRun]:
    """An untrained network with all that a finished run holds."""

    def make(
        name: str = "first",
        *,
        class_names: Sequence[str] = ("cnv", "drusen", "normal"),
        pack_seed: int = 0,
        weights_seed: int = 0,
        lr: float = 1e-4,
        gates: list[dict[str, Any]] | None = None,
        source: str = "clinic",
    ) -> JudgedRun:
        pack = tmp_path / f"pack-{pack_seed}"
        if not pack.is_dir():
            build_pack(pack, class_names, seed=pack_seed, source=source, gates=gates)
        fingerprint = json.loads((pack / "dataset.json").read_text())["fingerprint"]
        data, tracking = DataConfig(pack=str(pack), fingerprint=fingerprint), TrackingConfig(mlflow=False)
        experiment = Experiment(name="small", model=MODEL, data=data, trainer=TrainerConfig(max_epochs=2), tracking=tracking)
        settings = experiment_to_dict(experiment)
        settings["optimizer"]["lr"] = lr
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        (run_dir / "experiment.yaml").write_text(experiment_to_yaml(experiment).replace("lr: 0.0001", f"lr: {lr}"))
        (run_dir / "environment.json").write_text(json.dumps({"processor": "a processor", "gpus": [], "versions": {"torch": "2.13.0"}}))
        log = EventLog(run_dir)
        log.write("start", world_size=2)
        for epoch in (1, 2):
            log.metrics({"images_per_s": 100.0 * epoch}, epoch=epoch - 1, step=epoch * 10 - 5)
            metrics = {"train_loss": 1 / epoch, "val_loss": 1.5 / epoch, "val_accuracy": 0.4 * epoch, "train_time_s": 30.0 * epoch}
            log.metrics(metrics, epoch=epoch, step=epoch * 10)
        torch.manual_seed(weights_seed)
        network = VisionTransformer(MODEL, num_classes=len(class_names), image_size_px=16, channels=1)
        save_checkpoint(
            run_dir / "checkpoint.pth",
            state_dict={key: value * 3 if value.is_floating_point() else value for key, value in network.state_dict().items()},
            class_names=class_names,
            contract=CONTRACT,
            experiment=settings,
            fingerprint=fingerprint,
            audit=[gate for gate in gates or [] if gate["verdict"] != "pass"],
            metrics={"epoch": 2, "step": 20, "val_loss": 0.75, "val_accuracy": 0.8},
        )
        return JudgedRun(run_dir, pack, fingerprint)

    return make


@pytest.fixture
def make_scored(tmp_path: Path, make_predictions: Callable[..., Predictions]) -> Callable[..., Path]:
    """What a run that was scored holds, but for its network: 31 images of 16 patients."""

    def make(
        name: str = "first",
        *,
        classes: int = 3,
        fingerprint: str = "f" * 64,
        quality: int = 0,
        strength: float = 1.0,
        settings: dict[str, Any] | None = None,
        gates: list[dict[str, Any]] | None = None,
        power_w: float | None = None,
    ) -> Path:
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        targets = [row // 2 % classes for row in range(31)]
        patients = [f"patient-{row // 2}" for row in range(31)]
        predictions = replace(make_predictions(targets, classes=classes, strength=strength, seed=quality, patients=patients), fingerprint=fingerprint)
        predictions.save(run_dir / "predictions-test.parquet")
        values = experiment_to_dict(Experiment(name="small")) | {"seed": (settings or {}).get("seed", 42)}
        values["optimizer"]["lr"] = (settings or {}).get("optimizer.lr", 1e-4)
        (run_dir / "experiment.yaml").write_text(json.dumps(values))
        log = EventLog(run_dir)
        for epoch in (1, 2):
            log.metrics({"val_loss": 1.5 / epoch, "val_accuracy": 0.4 * epoch}, epoch=epoch, step=epoch * 10)
        cost = {"train_time_s": 60.0, "images_per_s": 150.0, "epochs": 2, "parameters": 1234, "device": "a processor", "processes": 2}
        about = {"run": run_dir.name, "experiment": "small", "split": "test", "audit": gates or [], "cost": cost | {"energy_wh": power_w}}
        compute_scores(predictions, about=about, draws=40, seed=0).save(run_dir)
        return run_dir

    return make


@pytest.fixture
def make_predictions() -> Callable[..., Predictions]:
    """Logits that point at the target with the given strength, some of them on purpose equal."""

    def make(targets: Sequence[int], *, classes: int = 3, strength: float = 1.0, seed: int = 0, patients: Sequence[str] | None = None) -> Predictions:
        logits = np.round(np.random.default_rng(seed).normal(size=(len(targets), classes)), 1).astype(np.float32)
        logits[np.arange(len(targets)), targets] += strength
        return Predictions(
            image_ids=[f"image-{i}" for i in range(len(targets))],
            patient_ids=list(patients) if patients is not None else [f"patient-{i}" for i in range(len(targets))],
            sources=["clinic"] * len(targets),
            targets=np.array(targets, dtype=np.int64),
            logits=logits,
            class_names=[f"class-{k}" for k in range(classes)],
            fingerprint="f" * 64,
            checkpoint={"epoch": 1, "step": 10, "val_loss": 0.5, "val_accuracy": 0.9},
        )

    return make

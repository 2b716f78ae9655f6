"""Accuracy of experiments with each of several seeds, at equal training time or each at its own best.

    python -m benchmarks.accuracy PACK -e reference -e modern --minutes 10 --seeds 1 2 3 -o benchmarks/results/accuracy-chest.json

With ``--minutes``, each experiment gets the epochs that fit them; without, it trains as its own file says, to its own end. How many epochs fit is measured
first, by some steps of each network, and written down; where the machine is quiet only for a while, ``--measure`` does
no more than that. The trainings may then take longer beside other work: they are given the same epochs all the same. A run that was
interrupted goes on, and one that is there already is not made again: the same command completes the table. Figures are of val, by which experiments are
chosen, and of test; of the weights with the lowest val_loss, with intervals over patients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scanvit.core.config import Experiment
from scanvit.core.events import metric_history
from scanvit.core.loading import experiment_to_yaml, load_experiment
from scanvit.core.runtime import has_bf16, usable_cores
from scanvit.data.augment import augment
from scanvit.data.pack import Pack
from scanvit.evaluation.predictions import Predictions, predict_split
from scanvit.evaluation.scoring import compute_scores
from scanvit.model.checkpoint import load_model
from scanvit.model.vit import VisionTransformer
from scanvit.training.recipe import build_optimizer
from scanvit.training.run_folder import is_finished

WARM_UP_STEPS, TIMED_S = 2, 5.0
SPLITS, FIGURES = ("val", "test"), ("accuracy", "balanced_accuracy", "macro_auroc")


def measure(experiment: Experiment, pack: Pack) -> dict[str, float]:
    """Images a second of a training step, and GFLOP an image trained, at the pack's size."""
    settings, shape = experiment.trainer, pack.contract.shape
    torch.set_num_threads(usable_cores() if settings.threads == "auto" else settings.threads)
    network = VisionTransformer(experiment.model, num_classes=len(pack.class_names), image_size_px=shape[-1], channels=shape[0])
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, experiment.optimizer)
    batch = settings.per_device_batch_size
    images, targets = torch.randn(batch, *shape), torch.randint(0, len(pack.class_names), (batch,))
    uses_bf16 = settings.precision == "bf16-mixed" or (settings.precision == "auto" and has_bf16())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16):
            logits = network(augment(images, experiment.augment))
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARM_UP_STEPS):
        step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < TIMED_S:
        step()
        steps += 1
    images_per_s = steps * batch / (time.perf_counter() - start)
    parameters = sum(p.numel() for p in network.parameters())
    return {"images_per_s": images_per_s, "gflop_per_image": gflop_per_image(experiment, pack), "parameters": parameters}


def gflop_per_image(experiment: Experiment, pack: Pack) -> float:
    """Three times the forward pass, with every product written out: the short cuts of our attention are no property of the network."""
    from benchmarks.baselines.standard import StandardNetwork
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    wanted, shape = experiment.model, pack.contract.shape
    sizes = {"dim": wanted.dim, "depth": wanted.depth, "heads": wanted.heads, "dim_head": wanted.dim_head, "mlp_dim": wanted.mlp_dim}
    network = StandardNetwork(widths=wanted.stem_widths, **sizes, size_px=shape[-1], classes=len(pack.class_names)).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return 3 * counter.get_total_flops() / 1e9


def epochs_that_fit(images_per_s: float, train_images: int, minutes: float) -> int:
    return max(1, round(60 * minutes * images_per_s / train_images))


def train_and_score(experiment: Experiment, pack: Path, run_dir: Path) -> dict[str, Any]:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    settings = run_dir.with_suffix(".yaml")
    settings.write_text(experiment_to_yaml(experiment), encoding="utf-8")
    if not is_finished(run_dir):
        subprocess.run([sys.executable, "-m", "scanvit", "train", settings, "--pack", pack, "--run-dir", run_dir], check=True)
    history = metric_history(run_dir)
    losses = [value for _, _, value in history["val_loss"]]
    told = {"seed": experiment.seed, "train_time_s": history["train_time_s"][-1][2], "epochs": len(losses), "best_epoch": 1 + losses.index(min(losses))}
    model, opened = load_model(run_dir), Pack.open(pack)
    return told | {split: figures(predict_split(model, opened, split), split) for split in SPLITS}


def figures(predictions: Predictions, split: str) -> dict[str, Any]:
    about = {"run": "", "experiment": "", "split": split, "audit": []}
    scores = compute_scores(predictions, about=about, draws=2000, seed=0)
    chosen = {name: scores.overall[name].to_dict() for name in FIGURES if name in scores.overall}
    return chosen | {"images": scores.images, "patients": scores.patients}


def row(name: str, pack: Path, args: argparse.Namespace) -> dict[str, Any]:
    experiment = load_experiment(name, args.set)
    experiment = replace(experiment, tracking=replace(experiment.tracking, mlflow=False))
    known = args.speeds[experiment.name]
    if args.minutes:
        epochs = epochs_that_fit(known["images_per_s"], len(Pack.open(pack).targets("train")), args.minutes)
        trainer = replace(experiment.trainer, max_epochs=epochs, early_stopping_patience=0)
        schedule = replace(experiment.schedule, warmup_epochs=min(experiment.schedule.warmup_epochs, epochs / 10))
        experiment = replace(experiment, trainer=trainer, schedule=schedule)
    given = f"{args.minutes:g}min" if args.minutes else "best"

    def run(seed: int) -> dict[str, Any]:
        scored = train_and_score(replace(experiment, seed=seed), pack, args.runs / f"{experiment.name}-{given}-{seed}")
        print(f"{experiment.name}, seed {seed}: {100 * scored['val']['accuracy']['value']:.1f} % on val", flush=True)
        return scored

    runs = list(args.pool.map(run, args.seeds))
    mean = {split: statistics.mean(run[split]["accuracy"]["value"] for run in runs) for split in SPLITS}
    return {"experiment": experiment.name, "settings": args.set, "epochs": experiment.trainer.max_epochs, "accuracy": mean, **known, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("-e", "--experiment", action="append", required=True, help="name or YAML file; may be repeated")
    parser.add_argument("--minutes", type=float, help="of training for each; without, each trains as its own file says")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--measure", action="store_true", help="only measure the speeds")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, for a GPU")
    parser.add_argument("--set", action="append", default=[], help="a setting of all of them")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    there = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    args.speeds, rows = there.get("speeds", {}), {old["experiment"]: old for old in there.get("rows", [])}
    for name in args.experiment:
        experiment = load_experiment(name, args.set)
        if experiment.name not in args.speeds:
            args.speeds[experiment.name] = measure(experiment, Pack.open(args.pack))
            write(args, list(rows.values()))
    if args.measure:
        return
    args.pool = ThreadPoolExecutor(max_workers=args.jobs)
    with ThreadPoolExecutor(max_workers=args.jobs) as tables:
        for made in tables.map(lambda name: row(name, args.pack, args), args.experiment):
            rows[made["experiment"]] = made
            write(args, list(rows.values()))


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "bf16": has_bf16()}
    if torch.cuda.is_available():
        machine["trained on"] = torch.cuda.get_device_name(0)
    about = {"minutes": args.minutes, "pack": args.pack.name, "fingerprint": Pack.open(args.pack).fingerprint, "machine": machine}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about | {"speeds": args.speeds, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

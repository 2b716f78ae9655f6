"""How training scales over processes, and what checkpoints cost: ratios within one run, contestants in turns, medians.

    python -m benchmarks.scaling [NETWORK ...] [--rounds 3] [--out benchmarks/results/scaling.json]

``--out`` keeps what it has of other networks: they may be measured one by one.

Every contestant is a ``scanvit`` command in processes of its own, pinned to its cores; its figures are read from the run that it leaves behind, so
that whatever can train a run can be compared: add a function to ``CONTESTANTS``. "images/s" are those of the steps after the first epoch
(median over epochs), "start-up" the time from the command to the end of the first step; a run on Ray says itself what that is made of.

Other work on the machine hits several processes harder than one, because they wait for each other in every step: measure on idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from scanvit.core.events import read_events
from scanvit.data.prepare import prepare

EPOCHS = 4
TARGETS = {"ddp": 1.8, "ray": 0.97, "checkpoint_share": 0.02}
"""Times one process pinned to one core; times DDP; share of the training's time at the default interval."""
CHECKPOINT_EVERY_S = 60.0
"""The default of trainer.checkpoint_every_s."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained: a shipped experiment at a size where an epoch takes seconds."""

    experiment: str
    per_device_batch_size: int
    images: int
    """Of the training split; others are a tenth of it."""


NETWORKS = {
    "tiny": Network(experiment="tiny", per_device_batch_size=32, images=640),
    "modern": Network(experiment="modern", per_device_batch_size=32, images=640),
    "reference": Network(experiment="reference", per_device_batch_size=8, images=32),
}


def one_process(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--set", "trainer.devices=1"]


def ddp(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--set", "trainer.devices=2"]


def ray(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["ray", "train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--num-workers", "2"]


CONTESTANTS: dict[str, tuple[Callable[[Sequence[str], Path, Path], list[str]], int]] = {"one process": (one_process, 1), "ddp": (ddp, 2), "ray": (ray, 2)}
"""{name: (arguments of scanvit, cores)}. The first is the baseline. The run must stand in ``run_dir`` when the command ends."""


def draw_pack(folder: Path, network: Network) -> Path:
    """Noise of 64 px in nine classes: what an image shows does not matter to the time."""
    generator = np.random.default_rng(0)
    parts = {"train": network.images, "val": max(9, network.images // 10)}
    arrays = {f"{split}_images": generator.integers(0, 256, (count, 64, 64), np.uint8) for split, count in parts.items()}
    arrays |= {f"{split}_labels": (np.arange(count, dtype=np.uint8) % 9)[:, None] for split, count in parts.items()}
    np.savez(folder / "noise.npz", **arrays | {"test_images": arrays["val_images"], "test_labels": arrays["val_labels"]})
    prepare(folder / "noise.npz", folder / "pack", settings={"image_size_px": 64}, workers=1)
    return folder / "pack"


def settings_of(network: Network, *more: str) -> list[str]:
    values = (f"trainer.max_epochs={EPOCHS}", f"trainer.per_device_batch_size={network.per_device_batch_size}", "trainer.accelerator=cpu")
    values += ("trainer.threads=1", "trainer.log_every_n_steps=1", "trainer.early_stopping_patience=0", "tracking.mlflow=false", *more)
    return [network.experiment, *(word for value in values for word in ("--set", value))]


def run(arguments: list[str], cores: int, run_dir: Path) -> dict[str, float]:
    """Run one command on the first ``cores`` cores that this process may use, and read its figures from the run."""
    pinned = sorted(os.sched_getaffinity(0))[:cores]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, "-m", "scanvit", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = [event["time"] for event in read_events(run_dir) if "train_loss_step" in event["values"]]
    epochs = [event["values"] for event in read_events(run_dir) if "val_loss" in event["values"]]
    return {
        "images_per_s": statistics.median(epoch["images_per_s"] for epoch in epochs[1:]),
        "startup_s": steps[0] - start,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "checkpoint_share": epochs[-1]["checkpoint_time_s"] / (time.time() - steps[0]),
    } | start_up_parts(done.stdout)


def start_up_parts(said: str) -> dict[str, float]:
    """{"startup/PART": seconds} of "first step after 12.0 s (PART 3.5, PART 8.5)"."""
    line = re.search(r"^first step after .* s \((.*)\)$", said, flags=re.MULTILINE)
    return {f"startup/{name}": float(seconds) for name, seconds in re.findall(r"([a-z ]+?) ([\d.]+)(?:, |$)", line[1])} if line else {}


def compare(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    network = NETWORKS[name]
    pack = draw_pack(folder, network)
    measured: dict[str, list[dict[str, float]]] = {contestant: [] for contestant in CONTESTANTS}
    for turn in range(rounds):
        for contestant, (arguments, cores) in CONTESTANTS.items():
            run_dir = folder / f"{contestant.replace(' ', '-')}-{turn}"
            measured[contestant].append(run(arguments(settings_of(network), pack, run_dir), cores, run_dir))
    baseline = next(iter(CONTESTANTS))
    figures: dict[str, Any] = {"per_device_batch_size": network.per_device_batch_size, "images": network.images, "rounds": rounds}
    for contestant, runs in measured.items():
        figures[contestant] = {key: round(statistics.median(one[key] for one in runs), 4) for key in runs[0]}
        ratios = [mine["images_per_s"] / alone["images_per_s"] for mine, alone in zip(runs, measured[baseline], strict=True)]
        if contestant == "ray":
            pairs = zip(runs, measured["ddp"], strict=True)
            figures[contestant]["ratio_to_ddp"] = round(statistics.median(mine["images_per_s"] / plain["images_per_s"] for mine, plain in pairs), 3)
        figures[contestant] |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    figures["checkpoint"] = measure_checkpoint(network, pack, folder)
    return figures


def measure_checkpoint(network: Network, pack: Path, folder: Path) -> dict[str, float]:
    """Seconds that one checkpoint keeps two processes waiting, from a run that writes one after every step."""
    run_dir = folder / "checkpoints"
    run(ddp(settings_of(network, "trainer.checkpoint_every_s=0.001", "trainer.max_epochs=2"), pack, run_dir), 2, run_dir)
    steps = sum("train_loss_step" in event["values"] for event in read_events(run_dir))
    spent_s = [event["values"]["checkpoint_time_s"] for event in read_events(run_dir) if "checkpoint_time_s" in event["values"]][-1]
    one_s = spent_s / steps
    return {"seconds": round(one_s, 4), "share_at_default_interval": round(one_s / CHECKPOINT_EVERY_S, 5)}


def show(results: dict[str, Any]) -> None:
    table = Table("network", "contestant", "images/s", "ratio", "start-up s", "CPU s", title="one process on one core = 1")
    for name, figures in results.items():
        for contestant in CONTESTANTS:
            row = figures[contestant]
            table.add_row(name, contestant, f"{row['images_per_s']:,.1f}", f"{row['ratio']:.2f}", f"{row['startup_s']:.1f}", f"{row['cpu_s']:.0f}")
        share = figures["checkpoint"]["share_at_default_interval"]
        table.add_row(name, "a checkpoint", "", "", f"{figures['checkpoint']['seconds']:.3f}", f"{share:.2%} of 60 s")
    Console().print(table)
    for name, figures in results.items():
        parts = ", ".join(f"{key.removeprefix('startup/')} {value:.1f}" for key, value in figures["ray"].items() if key.startswith("startup/"))
        print(f"{name}: ray {figures['ray']['ratio_to_ddp']:.3f} of ddp; its start-up in s: {parts}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    for name in args.networks or NETWORKS:
        with tempfile.TemporaryDirectory(prefix="scanvit-scaling-") as folder:
            results[name] = compare(name, args.rounds, Path(folder))
        show({name: results[name]})
    about = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__, "epochs": EPOCHS}
    if args.out:
        before = json.loads(args.out.read_text(encoding="utf-8"))["results"] if args.out.is_file() else {}
        args.out.write_text(json.dumps({"about": about, "targets": TARGETS, "results": before | results}, indent=2) + "\n", encoding="utf-8")
    missed = [name for name, figures in results.items() if figures["ddp"]["ratio"] < TARGETS["ddp"]]
    missed += [f"{name}, ray" for name, figures in results.items() if figures["ray"]["ratio_to_ddp"] < TARGETS["ray"]]
    missed += [f"{name}, checkpoint" for name, figures in results.items() if figures["checkpoint"]["share_at_default_interval"] > TARGETS["checkpoint_share"]]
    print(f"targets missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

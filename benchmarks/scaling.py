"""How training scales over processes, and what checkpoints cost: ratios within one run, contestants in turns, medians.

Every contestant is a ``scanvit`` command in processes of its own, pinned to its cores; its figures are read from the run that it leaves behind, so
that whatever can train a run can be compared: add a function to ``CONTESTANTS``. "images/s" are those of the steps after the first epoch
(median over epochs), "start-up" the time from the command to the end of the first step; a run on Ray says itself what that is made of.

Other work on the machine hits several processes harder than one, because they wait for each other in every step: measure on idle cores.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scanvit.core.events import read_events
from scanvit.data.prepare import prepare

from .harness import Cost, Figure, Options, Ratio

CHECKPOINT_EVERY_S = 60.0
"""The default of trainer.checkpoint_every_s."""
CHECKPOINT_SHARE = 0.02
"""Aim: the most of the training's time that checkpoints may cost at that interval."""
Command = Callable[[Sequence[str], Path, Path], list[str]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained: a shipped experiment at a size where an epoch takes seconds."""

    per_device_batch_size: int
    images: int
    """Of the training split."""
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run that has ended tells."""

    images_per_s: float
    startup_s: float
    parts_s: dict[str, float]
    """Of the start-up, where the command says them."""


def one_process(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--set", "trainer.devices=1"]


def ddp(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--set", "trainer.devices=2"]


def ray(settings: Sequence[str], pack: Path, run_dir: Path) -> list[str]:
    return ["ray", "train", *settings, "--pack", str(pack), "--run-dir", str(run_dir), "--num-workers", "2"]


CONTESTANTS: dict[str, tuple[Command, int]] = {"one process": (one_process, 1), "ddp": (ddp, 2), "ray": (ray, 2)}
"""{name: (arguments of scanvit, cores)}. The run must stand in ``run_dir`` when the command ends."""
NETWORKS = {
    "tiny": Network(per_device_batch_size=32, images=1280, epochs=4),
    "reference": Network(per_device_batch_size=16, images=64, epochs=3),
}


def draw_pack(folder: Path, network: Network) -> Path:
    """Noise of 64 px in nine classes: what an image shows does not matter to the time."""
    generator = np.random.default_rng(0)
    parts = {"train": network.images, "val": max(9, network.images // 10), "test": 9}
    arrays = {f"{split}_images": generator.integers(0, 256, (count, 64, 64), np.uint8) for split, count in parts.items()}
    arrays |= {f"{split}_labels": (np.arange(count, dtype=np.uint8) % 9)[:, None] for split, count in parts.items()}
    np.savez(folder / "noise.npz", **arrays)
    prepare(folder / "noise.npz", folder / "pack", settings={"image_size_px": 64}, workers=1)
    return folder / "pack"


def settings_of(name: str, *more: str) -> list[str]:
    network = NETWORKS[name]
    values = (f"trainer.max_epochs={network.epochs}", f"trainer.per_device_batch_size={network.per_device_batch_size}", "trainer.accelerator=cpu")
    values += ("trainer.threads=1", "trainer.log_every_n_steps=1", "trainer.early_stopping_patience=0", "tracking.mlflow=false", *more)
    return [name, *(word for value in values for word in ("--set", value))]


def train(arguments: Sequence[str], cores: int, run_dir: Path) -> Run:
    """Run one command on the first ``cores`` cores that this process may use, and read its figures from the run."""
    pinned, start = sorted(os.sched_getaffinity(0))[:cores], time.time()
    done = subprocess.run(
        [sys.executable, "-m", "scanvit", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    first_step = next(event["time"] for event in read_events(run_dir) if "train_loss_step" in event["values"])
    rates = [event["values"]["images_per_s"] for event in read_events(run_dir) if "val_loss" in event["values"]]
    return Run(images_per_s=statistics.median(rates[1:]), startup_s=first_step - start, parts_s=start_up_parts(done.stdout))


def start_up_parts(said: str) -> dict[str, float]:
    """{PART: seconds} of "first step after 12.0 s (PART 3.5, PART 8.5)"."""
    line = re.search(r"^first step after .* s \((.*)\)$", said, flags=re.MULTILINE)
    return {name: float(seconds) for name, seconds in re.findall(r"([a-z ]+?) ([\d.]+)(?:, |$)", line[1])} if line else {}


def take_turns(name: str, contestants: Sequence[str], folder: Path, rounds: int) -> dict[str, list[Run]]:
    pack, measured = draw_pack(folder, NETWORKS[name]), {contestant: list[Run]() for contestant in contestants}
    for turn in range(rounds):
        for contestant, runs in measured.items():
            arguments, cores = CONTESTANTS[contestant]
            run_dir = folder / f"{contestant.replace(' ', '-')}-{turn}"
            runs.append(train(arguments(settings_of(name), pack, run_dir), cores, run_dir))
            print(f"{name}, {contestant}: {runs[-1].images_per_s:,.1f} images/s, first step after {runs[-1].startup_s:.1f} s", flush=True)
    return measured


def checkpoint_s(name: str, pack: Path, run_dir: Path) -> float:
    """Seconds that one checkpoint keeps two processes waiting, from a run that writes one after every step."""
    train(ddp(settings_of(name, "trainer.checkpoint_every_s=0.001", "trainer.max_epochs=2"), pack, run_dir), 2, run_dir)
    events = [event["values"] for event in read_events(run_dir)]
    spent_s = max(values["checkpoint_time_s"] for values in events if "checkpoint_time_s" in values)
    return float(spent_s / sum("train_loss_step" in values for values in events))


def compare(name: str, what: str, runs: Sequence[Run], baseline: Sequence[Run]) -> Ratio:
    mine, other = [run.images_per_s for run in runs], [run.images_per_s for run in baseline]
    ratios = tuple(ours / theirs for ours, theirs in zip(mine, other, strict=True))
    return Ratio(name=name, what=what, ours=statistics.median(mine), baseline=statistics.median(other), unit="images/s", n=len(ratios), ratios=ratios)


def start_up(contestant: str, runs: Sequence[Run]) -> Cost:
    parts = ", ".join(f"{part} {statistics.median(run.parts_s[part] for run in runs):.1f}" for part in runs[0].parts_s)
    seconds = statistics.median(run.startup_s for run in runs)
    return Cost(name="startup", what=f"{contestant}, from the command to the first step", value=seconds, unit="s", n=len(runs), how=parts)


def run(options: Options) -> list[Figure]:
    figures = list[Figure]()
    for name in ("tiny",) if options.quick else NETWORKS:
        with tempfile.TemporaryDirectory(prefix="scanvit-scaling-", dir=options.work) as folder:
            runs = take_turns(name, ("one process", "ddp"), Path(folder), 1 if options.quick else 3)
            each_s = checkpoint_s(name, Path(folder) / "pack", Path(folder) / "checkpoints")
        figures.append(compare(f"scaling/{name}", f"{name}: two processes on two cores against one on one", runs["ddp"], runs["one process"]))
        what = f"{name}: share of the time that waits for checkpoints, {each_s * 1000:.0f} ms every {CHECKPOINT_EVERY_S:.0f} s, against the aim"
        share = each_s / CHECKPOINT_EVERY_S
        figures.append(Ratio(name=f"checkpoints/{name}", what=what, ours=share, baseline=CHECKPOINT_SHARE, unit="of 1", n=1))
        figures += [start_up(f"{name}, {contestant}", found) for contestant, found in runs.items()]
    return figures

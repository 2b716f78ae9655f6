"""The training step of the reference network: scanvit's ``fit`` against what a user would run, in turns, once their losses are shown to agree."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scanvit.core.runtime import has_bf16

from .contestants import Setup, make_setup, train_baseline, train_scanvit
from .harness import Contestant, Options, Ratio

BATCH_SIZE = 32
CONTESTANTS: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
    "scanvit-float32": (train_scanvit, ("32-true",)),
    "original-float32": (train_baseline, ("original", False)),
    "standard-float32": (train_baseline, ("standard", False)),
    "scanvit-bf16": (train_scanvit, ("bf16-mixed",)),
    "original-bf16": (train_baseline, ("original", True)),
    "standard-bf16": (train_baseline, ("standard", True)),
}
TOLERANCE = {"float32": 2e-3, "bf16": 5e-2}
"""Largest difference of two losses, of about 2. Rounding differs, and Adam's first steps go as far for a small gradient as for a large one."""

SETTLE_S = 1.0
"""Between turns: the workers of a DataLoader go on until their queue is full, in the time of whoever comes next."""


def start(name: str, setup: Setup) -> Contestant:
    target, arguments = CONTESTANTS[name]
    order = (setup, *arguments) if target is train_scanvit else (arguments[0], setup, *arguments[1:])
    return Contestant(target, *order)


def losses(setup: Setup, steps: int, names: tuple[str, ...] = tuple(CONTESTANTS)) -> dict[str, list[float]]:
    """Of the first steps of each contestant, {name: (steps,)}."""
    found = {}
    for name in names:
        contestant = start(name, setup)
        found[name] = [contestant.turn()[1] for _ in range(steps)]
        contestant.close()
    return found


def differences(found: dict[str, list[float]]) -> dict[str, float]:
    """Largest difference of our loss from each baseline's at the same precision, over all steps."""
    gaps = {}
    for name, values in found.items():
        who, precision = name.split("-")
        if who != "scanvit":
            gaps[name] = max(abs(mine - other) for mine, other in zip(found[f"scanvit-{precision}"], values, strict=True))
    return gaps


def check_losses(setup: Setup, steps: int) -> dict[str, float]:
    """Raises SystemExit where ours differ from a baseline's by more than the tolerance and what the two baselines differ by among themselves: rounding grows
    from step to step, for them as for us."""
    found = losses(setup, steps)
    gaps = differences(found)
    for name, gap in gaps.items():
        precision = name.split("-")[1]
        among = max(abs(one - other) for one, other in zip(found[f"original-{precision}"], found[f"standard-{precision}"], strict=True))
        print(f"largest difference of the loss from {name} over {steps} steps: {gap:.2g}; of the baselines among themselves: {among:.2g}", flush=True)
        if gap > TOLERANCE[precision] + among:
            raise SystemExit(f"{name} trains something else: its loss differs by {gap:.3g}. Nothing was timed.")
    return gaps


def time_steps(setup: Setup, rounds: int) -> dict[str, list[float]]:
    """images/s of every round, after one step to warm up."""
    contestants = {name: start(name, setup) for name in CONTESTANTS}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for contestant in contestants.values():
            contestant.turn()  # builds; and so that nobody builds while another is timed
        for _ in range(rounds):
            for name, contestant in contestants.items():
                time.sleep(SETTLE_S)
                rates[name].append(BATCH_SIZE / contestant.turn()[0])
                print(f"{name}: {rates[name][-1]:.2f} images/s", flush=True)
    finally:
        for contestant in contestants.values():
            contestant.close()
    return rates


def run(options: Options) -> list[Ratio]:
    rounds, steps, small = (1, 3, 1) if options.quick else (7, 50, 2)
    common = ("trainer.accelerator=cpu", "trainer.max_epochs=1")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        check_losses(make_setup(Path(folder) / "small", *common, f"trainer.per_device_batch_size={small}", images=300), steps)
        rates = time_steps(make_setup(Path(folder) / "large", *common, f"trainer.per_device_batch_size={BATCH_SIZE}", images=400), rounds)
    best = "scanvit-bf16" if has_bf16() else "scanvit-float32"
    standard = max(("standard-float32", "standard-bf16"), key=lambda name: statistics.median(rates[name]))
    pairs = [
        ("train/original-float32", "the original's way, float32", best, "original-float32"),
        ("train/original-bf16", "the original's way, bf16", best, "original-bf16"),
        ("train/standard", f"fused attention, DataLoader, the better of its precisions ({standard.split('-')[1]})", best, standard),
        ("train/float32", "float32 against fused attention in float32", "scanvit-float32", "standard-float32"),
    ]
    return [_ratio(rates, *pair) for pair in pairs]


def _ratio(rates: dict[str, list[float]], name: str, what: str, ours: str, baseline: str) -> Ratio:
    each = tuple(mine / other for mine, other in zip(rates[ours], rates[baseline], strict=True))
    mine, other = statistics.median(rates[ours]), statistics.median(rates[baseline])
    return Ratio(name=name, what=f"training step: {what}", ours=mine, baseline=other, unit="images/s", n=len(each), ratios=each)

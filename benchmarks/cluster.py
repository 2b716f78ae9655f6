"""Ray against plain DDP: the same run, in the same number of processes, on this machine.

    python benchmarks/cluster.py [--repeats 3] [--workers 2] [--epochs 6]

Prints images/s of the epochs after the first (median over epochs and repeats; runs alternate, so that a busy machine disturbs both alike),
their ratio, and how a run on Ray spends its start-up. The weights of all runs are compared: they must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parents[1] / "src"


def scanvit(*args: str | Path) -> tuple[str, float]:
    """(output, seconds) of a command."""
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "COLUMNS": "200"}
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "scanvit", *map(str, args)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout, time.monotonic() - began


def speeds(run_dir: Path) -> list[float]:
    """images/s of each epoch but the first."""
    events = map(json.loads, (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event["values"]["images_per_s"] for event in events if event["kind"] == "metrics" and "val_loss" in event["values"]][1:]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scanvit-benchmark-") as name:
        folder = Path(name)
        scanvit("data", "phantom", "-o", folder / "images", "--patients-per-class", "60", "--no-flaws")
        scanvit("data", "prepare", folder / "images", "-o", folder / "pack")
        settings = (f"trainer.max_epochs={options.epochs}", "tracking.mlflow=false", "trainer.accelerator=cpu")
        common = ["tiny", "--pack", folder / "pack", *(text for setting in settings for text in ("--set", setting))]
        found: dict[str, list[float]] = {"DDP": [], "Ray": []}
        walls: dict[str, list[float]] = {"DDP": [], "Ray": []}
        start_ups, states = [], []
        for repeat in range(options.repeats):
            for kind in found:
                run_dir = folder / f"{kind}-{repeat}"
                how = ["train", "--set", f"trainer.devices={options.workers}"] if kind == "DDP" else ["ray", "train", "--num-workers", str(options.workers)]
                said, wall_s = scanvit(*how, *common, "--run-dir", run_dir)
                found[kind] += speeds(run_dir)
                walls[kind].append(wall_s)
                states.append(weights(run_dir))
                start_ups += re.findall(r"first step after .*", said)
        same = all(torch.equal(state[key], states[0][key]) for state in states for key in state)
        ddp, ray = (statistics.median(found[kind]) for kind in ("DDP", "Ray"))
        print(f"{options.workers} processes, {options.repeats} runs of each, {options.epochs} epochs; load of the machine {os.getloadavg()[0]:.1f}")
        for kind in found:
            low, high = min(found[kind]), max(found[kind])
            print(f"{kind}  {statistics.median(found[kind]):8.0f} images/s ({low:.0f} to {high:.0f}), a run {statistics.median(walls[kind]):.1f} s")
        print(f"Ray / DDP {ray / ddp:.3f} in steady state; the weights of all runs are {'the same' if same else 'DIFFERENT'}")
        print("\n".join(f"Ray: {line}" for line in start_ups))


if __name__ == "__main__":
    main()

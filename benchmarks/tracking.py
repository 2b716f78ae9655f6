"""What a tracking server that hangs costs the training: pairs of runs, one without tracking and one whose server accepts every call and answers none.

    python -m benchmarks.tracking [--pairs 6] [--out benchmarks/results/tracking.json]

Both runs of a pair are ``scanvit train tiny``, one after the other, the first of them in turns. A run's figure are the images/s of all its epochs
together, the first one included, in which MLflow's client starts up and calls. The interval of the ratio is the bootstrap's over pairs (95 %, 10,000 draws).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from scanvit.core.events import read_events
from scanvit.data.prepare import prepare

EPOCHS, IMAGES, DRAWS = 4, 1500, 10_000


@contextmanager
def hanging_server() -> Iterator[str]:
    """The kernel takes connections and what they send; nobody ever reads it."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def make_pack(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8), generator.integers(0, 2, (IMAGES, 1))
    np.savez(folder / "images.npz", train_images=images, train_labels=labels)
    prepare(folder / "images.npz", folder / "pack", settings={"image_size_px": 28}, workers=1)
    return folder / "pack"


def train(pack: Path, run_dir: Path, uri: str | None) -> float:
    """Images/s of the whole run."""
    settings = [f"trainer.max_epochs={EPOCHS}", f"tracking.mlflow={'true' if uri else 'false'}", "tracking.drain_timeout_s=1"]
    command = [sys.executable, "-m", "scanvit", "train", "tiny", "--pack", str(pack), "--run-dir", str(run_dir), *(w for s in settings for w in ("--set", s))]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run(command, env=clean | ({"MLFLOW_TRACKING_URI": uri} if uri else {}), capture_output=True, check=True)
    rates = [event["values"]["images_per_s"] for event in read_events(run_dir) if event["kind"] == "metrics" and "images_per_s" in event["values"]]
    assert len(rates) == EPOCHS, rates
    return statistics.harmonic_mean(rates)


def measure(pairs: int) -> tuple[list[float], list[float]]:
    without: list[float] = []
    hanging: list[float] = []
    with tempfile.TemporaryDirectory() as folder, hanging_server() as uri:
        pack = make_pack(Path(folder))
        for pair in range(pairs):
            for target, figures in ((None, without), (uri, hanging))[:: -1 if pair % 2 else 1]:
                figures.append(train(pack, Path(folder) / f"{pair}-{'hanging' if target else 'without'}", target))
    return without, hanging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    without, hanging = measure(options.pairs)
    ratios = np.divide(hanging, without)
    draws = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    found = {
        "pairs": options.pairs,
        "without_images_per_s": without,
        "hanging_images_per_s": hanging,
        "ratio": {"median": float(np.median(ratios)), "low": float(low), "high": float(high)},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    Console(highlight=False).print(
        f"without tracking {statistics.median(without):,.0f} images/s, with a server that hangs {statistics.median(hanging):,.0f} images/s, "
        f"ratio {found['ratio']['median']:.3f} ({low:.3f} to {high:.3f}), n = {options.pairs} pairs"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

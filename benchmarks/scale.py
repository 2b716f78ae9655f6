"""Memory and time of prepare, audit and the loader as the number of images grows.

    python -m benchmarks.scale 20000 200000 1000000 --work /tmp/scale -o benchmarks/results/scale-million.json

The images are noise of 16 x 16 pixels in a MedMNIST file that is written piece by piece: every image is different, and each is a patient of its
own, which is the worst case for whatever is kept per patient. Every stage runs in a fresh process, so that its peak is its own. Two peaks are
told: ``anonymous_mib``, what the process itself holds (sampled each 20 ms from /proc, so Linux only), and ``resident_mib``, the kernel's high-water
mark, which also counts the pages of memory-mapped files that the system may take back at any time. ``baseline_mib`` is the anonymous
memory after the imports. ``workers_mib`` is the anonymous peak of the largest decoding process (the kernel's mark for children would
count what the parent held when it started them).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .harness import Cost, Options

SIDE_PX = 16
CLASSES = 9
BATCH_SIZE = 256
_PIECE = 20_000


def draw(file: Path, images: int) -> None:
    """A MedMNIST file with a train and a small val part: without a test part its images are split anew."""
    parts = {"train": images - images // 10, "val": images // 10}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for seed, (split, count) in enumerate(parts.items()):
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE_PX, SIDE_PX)})
                for start in range(0, count, _PIECE):
                    generator = np.random.default_rng((seed, start))
                    stream.write(generator.integers(0, 256, (min(_PIECE, count - start), SIDE_PX, SIDE_PX), np.uint8).tobytes())
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, (np.arange(count, dtype=np.uint8) % CLASSES)[:, None])


def run_prepare(folder: Path, workers: int) -> Callable[[], None]:
    from scanvit.data.prepare import prepare

    return lambda: print(prepare(folder / "noise.npz", folder / "pack", settings={"image_size_px": SIDE_PX}, workers=workers).fingerprint)


def run_audit(folder: Path, workers: int) -> Callable[[], None]:
    from scanvit.data.audit import audit

    return lambda: print(*(gate.gate for gate in audit(folder / "pack")))


def run_loader(folder: Path, workers: int) -> Callable[[], None]:
    """One epoch of the training split, every pixel touched."""
    import torch

    from scanvit.data.loader import Position, TrainLoader, as_tensor
    from scanvit.data.pack import Pack

    def read() -> None:
        pack = Pack.open(folder / "pack")
        images, targets = as_tensor(pack.images("train")), torch.from_numpy(pack.targets("train"))
        loader = TrainLoader(images, targets, position=Position, seed=0, per_device_batch_size=BATCH_SIZE, rank=0, world_size=1)
        print(sum(int(batch.sum()) for batch, _, _ in loader))

    return read


STAGES = {"prepare": run_prepare, "audit": run_audit, "loader": run_loader}


def measure(stage: str, folder: Path, workers: int) -> dict[str, float]:
    """Run one stage in this process."""
    action = STAGES[stage](folder, workers)
    baseline = _anonymous_mib()
    peak, workers_peak, done = [baseline], [0.0], threading.Event()

    def watch() -> None:
        rounds = 0
        while not done.wait(0.02):
            peak[0] = max(peak[0], _anonymous_mib())
            rounds += 1
            if rounds % 25 == 0:
                workers_peak[0] = max([workers_peak[0], *(_anonymous_mib(child.pid) for child in psutil.Process().children(recursive=True))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    figures = {"time_s": time.monotonic() - start, "baseline_mib": baseline, "anonymous_mib": peak[0]}
    figures["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["workers_mib"] = workers_peak[0]
    return {name: round(value, 1) for name, value in figures.items()}


def _anonymous_mib(pid: int | str = "self") -> float:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0) / 1024
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0.0


def benchmark(images: int, work: Path, workers: int, stages: list[str]) -> dict[str, Any]:
    folder = work / str(images)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw(folder / "noise.npz", images)
    figures: dict[str, Any] = {"images": images}
    try:
        for stage in stages:
            command = [sys.executable, "-m", "benchmarks.scale", "--stage", stage, "--work", str(folder), "--workers", str(workers)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[stage] = json.loads(result.stdout.splitlines()[-1])
            print(f"{images:>9,} images  {stage:<8}", *(f"{name} {value:,.1f}" for name, value in figures[stage].items()), flush=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{stage} of {images} images failed:\n{error.stderr[-3000:]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def run(options: Options) -> list[Cost]:
    """The suite of ``python -m benchmarks``: a small and a large set, and what each further image costs."""
    sizes = (2_000, 5_000) if options.quick else (20_000, 200_000)
    few, many = (benchmark(images, options.work / "scanvit-scale", 2, list(STAGES)) for images in sizes)
    costs = []
    for stage in STAGES:
        for key, unit in (("time_s", "s"), ("anonymous_mib", "MiB")):
            each = (many[stage][key] - few[stage][key]) / (sizes[1] - sizes[0])
            at_10k, at_1m = (max(0.0, few[stage][key] + each * (images - sizes[0])) for images in (10_000, 1_000_000))
            costs.append(
                Cost(
                    name=f"scale/{stage}/{key}",
                    what=f"{stage}, {sizes[1]:,} images of {SIDE_PX} px",
                    value=many[stage][key],
                    unit=unit,
                    at_10k=f"{at_10k:,.0f} {unit}",
                    at_1m=f"{at_1m:,.0f} {unit}",
                    how=f"a line through {sizes[0]:,} and {sizes[1]:,}",
                )
            )
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", type=int, default=[20_000, 200_000])
    parser.add_argument("--work", type=Path, default=Path("/tmp/scanvit-scale"), help="scratch folder: about 4 kB an image at its peak; emptied afterwards")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(measure(args.stage, args.work, args.workers)))
        return
    results = [benchmark(images, args.work, args.workers, args.stages) for images in args.images]
    about = {"side_px": SIDE_PX, "workers": args.workers, "cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    if args.out:
        args.out.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

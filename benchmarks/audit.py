"""Time and memory of the audit's near-duplicate search as the number of images grows, and what comparing each with each would take.

    python -m benchmarks.audit 20000 200000 1000000 -o benchmarks/results/audit-million.json

Two kinds of hashes: ``even``, whose bits are fair coins, and ``alike``, which are drawn around 5,000 shared ones with a quarter of the bits
changed, so that neighbours are as near as those of one kind of X-ray (median distance to the nearest stranger about 70 of 256 bits). In both a
hundred pairs are planted at 23 bits, the largest distance that must be found, and every one must come back. Each measurement runs in a process of
its own; ``peak_mib`` is the kernel's high-water mark, ``hashes_mib`` the size of the input. The brute force is timed on 2,000 images against all and
scaled to all pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .harness import Options, Ratio

PLANTED = 100
ASKED = 2000


def draw(count: int, kind: str) -> np.ndarray:
    """uint64 (count, 4), the first ``2 * PLANTED`` of them in pairs 23 bits apart."""
    random = np.random.default_rng(0)
    shared = random.integers(0, 2**64, (5000, 4), dtype=np.uint64)
    hashes = np.empty((count, 4), np.uint64)
    for start in range(0, count, 5_000):
        part = hashes[start : start + 5_000]
        if kind == "even":
            part[:] = random.integers(0, 2**64, part.shape, dtype=np.uint64)
        else:
            changed = np.packbits(random.random((len(part), 256)) < 0.25, axis=1).view(np.uint64)
            part[:] = shared[random.integers(0, len(shared), len(part))] ^ changed
    for pair in range(0, 2 * PLANTED, 2):
        hashes[pair + 1] = hashes[pair]
        for bit in random.choice(256, 23, replace=False).tolist():
            hashes[pair + 1, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return hashes


def measure(count: int, kind: str) -> dict[str, float]:
    """In this process."""
    from scanvit.data.near_duplicates import find_near_duplicates

    hashes = draw(count, kind)
    find_near_duplicates(hashes[:100])  # the first call imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.monotonic()
    found = find_near_duplicates(hashes)
    figures = {"time_s": time.monotonic() - start, "before_mib": before, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    links = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    missed = [pair for pair in range(0, 2 * PLANTED, 2) if (pair, pair + 1) not in links]
    if missed:
        sys.exit(f"{len(missed)} planted pairs were missed")
    asked = min(ASKED, count)
    start = time.monotonic()
    for position in range(asked):
        (np.bitwise_count(hashes ^ hashes[position]).sum(axis=1) <= 23).sum()
    figures["brute_force_s"] = (time.monotonic() - start) * (count / asked) / 2
    figures["hashes_mib"] = hashes.nbytes / 2**20
    return {name: round(value, 2) for name, value in figures.items()} | {"links": len(links)}


def run(options: Options) -> list[Ratio]:
    """The suite of ``python -m benchmarks``."""
    images, ratios = 5_000 if options.quick else 200_000, []
    for kind in ("even", "alike"):
        command = [sys.executable, "-m", "benchmarks.audit", str(images), "--kind", kind]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        what = f"near duplicates among {images:,} {kind} hashes against comparing all (scaled from {ASKED:,})"
        ratios.append(Ratio(name=f"audit/{kind}", what=what, ours=figures["time_s"], baseline=figures["brute_force_s"], unit="s", n=1))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", type=int, default=[20_000, 200_000])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--kind", choices=("even", "alike"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(measure(args.images[0], args.kind)))
        return
    results: list[dict[str, Any]] = []
    for kind in ("even", "alike"):
        for images in args.images:
            command = [sys.executable, "-m", "benchmarks.audit", str(images), "--kind", kind]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            results.append({"images": images, "hashes": kind} | figures)
            ratio = figures["brute_force_s"] / figures["time_s"]
            print(f"{images:>9,} {kind:<6}", *(f"{name} {value:,}" for name, value in figures.items()), f"times faster {ratio:,.0f}", flush=True)
    if args.out:
        about = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

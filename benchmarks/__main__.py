"""All benchmarks behind one command: every figure beside its baseline and its floor.

    python -m benchmarks [--only NAME ...] [--quick] [--list]

Each suite writes its record to benchmarks/results/, with the hardware and the versions. The exit code is 1 where a ratio fell below its floor in
benchmarks/floors.json. Contestants take turns within one run, so that whatever else a machine does hits them alike; still, idle cores
measure best.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .harness import Cost, Figure, Options, Ratio, Skipped, below, floors, machine, record

SUITES = {
    "training": "the reference network's training step against two baselines; 9 minutes",
    "inference": "latency of one image and throughput, PyTorch and ONNX Runtime; a minute",
    "predict": "scanvit predict from files to JSON against bare ONNX Runtime; 3 minutes",
    "data": "decoding JPEG and reading a pack; 3 minutes",
    "audit": "the search for near duplicates against comparing each with each; 2 minutes",
    "scaling": "two processes on two cores against one on one, what checkpoints cost; 4 minutes",
    "cluster": "a run on Ray against plain DDP, the start-up in parts; 4 minutes",
    "gpu": "the reference network on one GPU: images/s, share of peak, 12 epochs; 10 minutes on a fast card",
    "road": "each stage's time and memory, and how they grow with the images; 6 minutes",
    "scale": "memory and time of prepare, audit and loader by the number of images; 5 minutes",
}


WIDTH = 180
"""Columns of the tables where no terminal has its own."""


def show(figures: list[Figure], least: dict[str, float]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    ratios = [figure for figure in figures if isinstance(figure, Ratio)]
    if ratios:
        table = Table(title="against baselines", title_justify="left")
        for column in ("figure", "what", "baseline", "scanvit", "unit", "ratio", "floor", "n"):
            table.add_column(column, justify="left" if column in ("figure", "what", "unit") else "right")
        for row in ratios:
            floor = least[row.name]
            mark = "" if row.ratio >= floor else "[red] below[/red]"
            table.add_row(row.name, row.what, f"{row.baseline:,.3g}", f"{row.ours:,.3g}", row.unit, f"{row.ratio:,.2f}{mark}", f"{floor:g}", str(row.n))
        console.print(table)
    costs = [figure for figure in figures if isinstance(figure, Cost)]
    if costs:
        table = Table(title="what it costs", title_justify="left")
        for column in ("figure", "what", "value", "unit", "n", "at 10k images", "at 1M images", "known by"):
            table.add_column(column, justify="right" if column in ("value", "n") else "left")
        for cost in costs:
            table.add_row(cost.name, cost.what, f"{cost.value:,.3g}", cost.unit, str(cost.n), cost.at_10k, cost.at_1m, cost.how)
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SUITES, metavar="NAME", help=f"a suite, may be repeated: {', '.join(SUITES)}")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: to see that all runs; its record goes to NAME.quick.json")
    parser.add_argument("--list", action="store_true", help="say what each suite measures")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="scratch folder")
    arguments = parser.parse_args()
    if arguments.list:
        for name, what in SUITES.items():
            print(f"{name:<10} {what}")
        return 0
    options, least, figures = Options(quick=arguments.quick, work=arguments.work), floors(), list[Figure]()
    for name in arguments.only or SUITES:
        print(f"== {name}: {SUITES[name]}", flush=True)
        about = machine()
        try:
            found = import_module(f"{__package__}.{name}").run(options)
        except Skipped as reason:
            print(f"   skipped: {reason}")
            continue
        print(f"   {record(name, found, about, quick=options.quick)}")
        figures += found
    show(figures, least)
    fallen = below(figures, least)
    for ratio in fallen:
        print(f"{ratio.name} is {ratio.ratio:.2f}, below its floor of {least[ratio.name]:g}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())

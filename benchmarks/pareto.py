"""Accuracy against training speed, drawn from the results of ``benchmarks.accuracy``.

    python -m benchmarks.pareto benchmarks/results/accuracy-chest.json -o docs/images/pareto.svg

A point is the mean over the seeds on val, by which sizes are chosen; its bar
reaches from the lowest end of the seeds' 95 % intervals to the highest. Speed has a logarithmic axis.
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from scanvit.pages.figures import nice_ticks

SPLIT = "val"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 24, 48, 56
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933 } .title { font-size: 15px; font-weight: 600 } .note { font-size: 11px; fill: #52606d }
.grid { stroke: #d9dfe5 } .bar { stroke: #2f6f8f; stroke-width: 2 } .dot { fill: #2f6f8f } .front { stroke: #c2571a; fill: none; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) { text { fill: #e4e7eb } .note { fill: #9aa5b1 } .grid { stroke: #3e4c59 } .bar { stroke: #7cc4e0 } .dot { fill: #7cc4e0 } }
"""


def front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other beats in both accuracy and speed, the slowest first."""
    better = lambda a, b: a["accuracy"][SPLIT] >= b["accuracy"][SPLIT] and a["images_per_s"] >= b["images_per_s"] and a is not b  # noqa: E731
    return sorted((row for row in rows if not any(better(other, row) for other in rows)), key=lambda row: row["images_per_s"])


def draw(result: dict[str, Any]) -> str:
    rows = result["rows"]
    ends = {row["experiment"]: interval(row) for row in rows}
    low, high = min(e[0] for e in ends.values()), max(e[1] for e in ends.values())
    ticks = nice_ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    speeds = [math.log10(row["images_per_s"]) for row in rows]
    slow, fast = min(speeds) - 0.15, max(speeds) + 0.15
    x = lambda speed: LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(speed) - slow) / (fast - slow)  # noqa: E731
    y = lambda share: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (share - low) / (high - low)  # noqa: E731
    parts = [f'<text class="title" x="{LEFT}" y="20">Accuracy on {SPLIT} against training speed</text>']
    parts += [f'<text class="note" x="{LEFT}" y="36">{escape(describe(result))}</text>']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
    for speed in (step * 10**power for power in range(math.floor(slow), math.ceil(fast) + 1) for step in (1, 2, 5)):
        if slow <= math.log10(speed) <= fast:
            parts.append(f'<text x="{x(speed):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{speed:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">images trained a second</text>')
    path = " ".join(f"{'M' if i == 0 else 'L'}{x(r['images_per_s']):.1f} {y(r['accuracy'][SPLIT]):.1f}" for i, r in enumerate(front(rows)))
    parts.append(f'<path class="front" d="{path}"/>')
    for number, row in enumerate(sorted(rows, key=lambda row: row["images_per_s"])):
        at, (bottom, top) = x(row["images_per_s"]), ends[row["experiment"]]
        parts.append(f'<line class="bar" x1="{at:.1f}" x2="{at:.1f}" y1="{y(bottom):.1f}" y2="{y(top):.1f}"/>')
        parts.append(f'<circle class="dot" cx="{at:.1f}" cy="{y(row["accuracy"][SPLIT]):.1f}" r="5"/>')
        label = f"{row['experiment']}, {row['gflop_per_image']:.2g} GFLOP"
        under = y(bottom) + 18 if number % 2 else y(top) - 8  # neighbours on different sides
        parts.append(f'<text x="{min(max(at, LEFT + 70), WIDTH - 70):.1f}" y="{under:.1f}" text-anchor="middle">{escape(label)}</text>')
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def interval(row: dict[str, Any]) -> tuple[float, float]:
    return min(run[SPLIT]["accuracy"]["low"] for run in row["runs"]), max(run[SPLIT]["accuracy"]["high"] for run in row["runs"])


def describe(result: dict[str, Any]) -> str:
    seeds = max(len(row["runs"]) for row in result["rows"])
    run = result["rows"][0]["runs"][0][SPLIT]
    given = f"{result['minutes']:g} min of training each" if result["minutes"] else "each trained as its own file says"
    return f"{given}, {seeds} seed{'s' * (seeds > 1)}, {run['images']} images of {run['patients']} patients, 95 % intervals"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(draw(json.loads(args.results.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()

"""``scanvit compare``."""

from __future__ import annotations

from pathlib import Path

import click

from . import printable
from .evaluate import SPLITS


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("-o", "--out", default="comparison.html", show_default=True, type=click.Path(path_type=Path), help="The page to write.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Whose scores to compare.")
def compare(runs: tuple[Path, ...], out: Path, split: str) -> None:
    """Set runs side by side: accuracy with intervals, cost, curves, and what differs.

    Each RUN must have been scored with scanvit evaluate. Runs on different packs are scored on the images that all were tested on.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.compare import compare as compare_runs
    from ..evaluation.page import figure, interval
    from ..pages.page import count, decimal, duration

    comparison = compare_runs(runs, out, split=split)
    table = Table("run", "strategy", box=None, pad_edge=False)
    for title in ("accuracy", "95% interval", "loss", "macro AUROC", "epochs", "time", "images/s", "parameters"):
        table.add_column(title, justify="right")
    for run in comparison.runs:
        overall = run.scores.overall
        epochs, images_per_s, parameters = run.cost("epochs"), run.cost("images_per_s"), run.cost("parameters")
        table.add_row(
            Text(printable(run.label)),
            Text(printable(run.strategy)),
            figure(overall["accuracy"]),
            interval(overall["accuracy"]),
            decimal(overall["log_loss"].value),
            decimal(overall["macro_auroc"].value),
            "–" if epochs is None else count(epochs),
            duration(run.cost("train_time_s")),
            "–" if images_per_s is None else f"{images_per_s:,.0f}",
            "–" if parameters is None else count(parameters),
        )
    console = Console()
    console.print(table)
    if comparison.common:
        console.print(printable(comparison.common), markup=False, highlight=False)
    for warning in comparison.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False, highlight=False)
    if comparison.differences:
        console.print(f"differ in: {', '.join(comparison.differences)}", markup=False, highlight=False)
    console.print(f"page  {out}", markup=False, highlight=False, soft_wrap=True)

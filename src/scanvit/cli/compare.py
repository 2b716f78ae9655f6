"""``scanvit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.compare import Comparison
    from ..evaluation.pairwise import Pairs


_EPILOG = """\b
Examples:
  scanvit compare runs/first runs/second
  scanvit compare runs/a1 runs/a2 runs/b1 runs/b2 --group experiment     seeds of two experiments: mean and spread
  scanvit compare runs/* --pairs all -o all.html
  scanvit compare runs/first runs/second --split external-NAME           on external data that both were judged on
  scanvit compare runs/first predictions/other                           another model's table, scored with --predictions"""


@click.command(epilog=_EPILOG)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("-o", "--out", default="comparison.html", show_default=True, type=click.Path(path_type=Path), help="The page to write.")
@click.option("--split", default="test", show_default=True, help="Whose scores to compare: train, val, test, final_eval or external-NAME.")
@click.option("--pairs", type=click.Choice(["first", "all"]), default="first", show_default=True, help="Test each run against the first, or all pairs.")
@click.option("--group", metavar="KEY", help="Runs that differ by their seed alone: by 'experiment', or by a setting such as optimizer.lr.")
def compare(runs: tuple[Path, ...], out: Path, split: str, pairs: Pairs, group: str | None) -> None:
    """Set runs side by side: figures with intervals, paired tests, curves, cost, and what differs.

    Each RUN must have been scored with scanvit evaluate. Runs on different packs are scored on the images that all were tested on.
    """
    from rich.console import Console

    from ..evaluation.compare import compare as compare_runs

    comparison = compare_runs(runs, out, split=split, pairs=pairs, group=group)
    console = Console()
    console.print(_runs(comparison))
    console.print(_costs(comparison))
    if comparison.groups:
        console.print(_groups(comparison))
    if comparison.pairs:
        console.print(_pairs(comparison))
        for pair in comparison.pairs:
            console.print(printable(pair.sentence), markup=False, highlight=False)
    if comparison.common:
        console.print(printable(comparison.common), markup=False, highlight=False)
    for warning in comparison.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False, highlight=False)
    if comparison.differences:
        console.print(f"differ in: {', '.join(comparison.differences)}", markup=False, highlight=False)
    console.print(f"page  {out}", markup=False, highlight=False, soft_wrap=True)


def _runs(comparison: Comparison) -> Table:
    """Fits 80 columns, as ``_costs`` does: one table of both would be cut there."""
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.page import figure, interval
    from ..pages.page import decimal

    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for title in ("accuracy", "95% interval", "loss", "macro AUROC"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in comparison.runs:
        overall = run.scores.overall
        cells = (figure(overall["accuracy"]), interval(overall["accuracy"]), decimal(overall["log_loss"].value), decimal(overall["macro_auroc"].value))
        table.add_row(Text(printable(run.label)), *cells)
    return table


def _costs(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..pages.page import NONE, count, duration

    has_energy = any(run.cost("energy_wh") is not None for run in comparison.runs)
    table = Table(box=None, pad_edge=False, title="\nwhat training took", title_justify="left", title_style="")
    table.add_column("run", overflow="fold")
    table.add_column("strategy", overflow="fold")
    for title in ("epochs", "time", "images/s", *(["Wh"] if has_energy else []), "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in comparison.runs:
        epochs, images_per_s, energy_wh, parameters = (run.cost(name) for name in ("epochs", "images_per_s", "energy_wh", "parameters"))
        table.add_row(
            Text(printable(run.label)),
            Text(printable(run.strategy)),
            NONE if epochs is None else count(epochs),
            duration(run.cost("train_time_s")),
            NONE if images_per_s is None else f"{images_per_s:,.0f}",
            *([NONE if energy_wh is None else f"{energy_wh:,.1f}"] if has_energy else []),
            NONE if parameters is None else count(parameters),
        )
    return table


def _groups(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.page import interval, spread

    table = Table(box=None, pad_edge=False, title="\nmean and standard deviation over seeds", title_justify="left", title_style="")
    table.add_column("group", overflow="fold")
    for title in ("runs", "accuracy", "over patients", "loss", "macro AUROC"):
        table.add_column(title, justify="right")
    for group in comparison.groups:
        cells = {name: "–" if values is None else spread(values, name) for name, values in group.figures.items()}
        accuracy = group.figures["accuracy"]
        over_patients = "–" if accuracy is None else interval(accuracy.over_patients)
        table.add_row(Text(printable(group.name)), str(len(group.labels)), cells["accuracy"], over_patients, cells["log_loss"], cells["macro_auroc"])
    return table


def _pairs(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.page import difference, difference_interval, p_value

    table = Table(box=None, pad_edge=False, title="\naccuracy on the same images, paired (p adjusted after Holm)", title_justify="left", title_style="")
    table.add_column("pair", overflow="fold")
    for title in ("points", "95% interval", "McNemar p"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("least DeLong p\nof a class", justify="right", overflow="fold")
    for pair in comparison.pairs:
        gain = pair.paired.differences["accuracy"]
        least = min(pair.delong_p.items(), key=lambda item: item[1], default=None)
        shown = "–" if least is None else f"{p_value(least[1])}\n{printable(least[0])}"
        names = Text(printable(f"{pair.second} less {pair.first}"))
        table.add_row(names, difference(gain), difference_interval(gain), p_value(pair.mcnemar_p), shown)
    return table

"""``scanvit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.scores import Scores

SPLITS = ("train", "val", "test", "final_eval")
_TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC", "log_loss": "log loss"}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Which images to judge.")
@click.option("--pack", type=click.Path(path_type=Path), help="Where the run's pack is now, if it was moved.")
@click.option("--draws", type=click.IntRange(0), default=2000, show_default=True, help="Resamples of the patients for the intervals.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
def evaluate(run: Path, split: str, pack: Path | None, draws: int, seed: int) -> None:
    """Judge the best weights of a run, with intervals, and write the report.

    Writes predictions-SPLIT.parquet, scores-SPLIT.json and report.html (report-SPLIT.html for other splits than test) into RUN.
    """
    evaluate_and_show(run, split=split, pack=pack, draws=draws, seed=seed)


def evaluate_and_show(run: Path, *, split: str = "test", pack: Path | None = None, draws: int = 2000, seed: int = 0) -> None:
    from ..evaluation.evaluate import evaluate as evaluate_run
    from .data import stage_progress

    with stage_progress() as progress:
        scores = evaluate_run(run, split=split, pack=pack, draws=draws, seed=seed, progress=lambda done, total: progress("Judging", done, total))
    _track(scores, run)
    _show(scores, run)


def _track(scores: Scores, run: Path) -> None:
    """Hand figures and files to the run's tracking; a server that is away gets them from ``scanvit track sync``."""
    from ..evaluation.evaluate import report_path
    from ..training.run_folder import load_run
    from ..training.shipping import ship_now
    from ..training.tracking import record_scores

    figures = {f"{scores.split}_{name}": estimate for name, estimate in scores.overall.items()}
    for class_name, of_class in scores.per_class.items():
        figures |= {f"{scores.split}_{metric}/{class_name}": estimate for metric, estimate in of_class.figures.items()}
    values = {f"{name}{end}": getattr(estimate, key) for name, estimate in figures.items() for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
    files = (f"predictions-{scores.split}.parquet", f"scores-{scores.split}.json", report_path(run, scores.split).name)
    record_scores(run, values, step=scores.checkpoint["step"], epoch=scores.checkpoint["epoch"], files=files)
    ship_now(run, load_run(run).tracking)


def _show(scores: Scores, run: Path) -> None:
    from rich.console import Console

    from ..evaluation.evaluate import report_path
    from ..pages.page import count

    console = Console()
    console.print(f"\n{count(scores.images, 'image')} of {count(scores.patients, 'patient')}, {scores.split} split", highlight=False)
    console.print(_overall(scores))
    console.print(_per_class(scores))
    if scores.audit:
        titles = printable(", ".join(str(gate.get("title") or gate.get("gate")) for gate in scores.audit))
        console.print(f"The audit of the data has open findings: {titles}.", style="yellow", markup=False, highlight=False)
    console.print(f"report  {report_path(run, scores.split)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"next    scanvit compare {run} OTHER_RUN, or scanvit predict {run} IMAGE", markup=False, highlight=False, soft_wrap=True)


def _overall(scores: Scores) -> Table:
    from rich.table import Table

    from ..evaluation.page import figure, interval

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column(f"{scores.interval['level']:.0%} interval", justify="right")
    for name, title in _TITLES.items():
        table.add_row(title, figure(scores.overall[name], name), interval(scores.overall[name], name))
    return table


def _per_class(scores: Scores) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.page import figure, interval
    from ..pages.page import count

    table = Table(box=None, pad_edge=False, title="\nby class, each against the rest", title_justify="left", title_style="")
    table.add_column("class")
    shown = {"recall": "sensitivity", "specificity": "specificity", "precision": "precision", "auroc": "AUROC"}
    for title in ("images", "patients", *shown.values()):
        table.add_column(title, justify="right")
    for name, of_class in scores.per_class.items():
        cells = []
        for metric in shown:
            estimate = of_class.figures[metric]
            spread = f" ({interval(estimate, metric).replace(' to ', '-')})" if estimate.low is not None else ""
            cells.append(f"{figure(estimate, metric)}{spread}")
        table.add_row(Text(printable(name)), count(of_class.images), count(of_class.patients), *cells)
    return table

"""``scanvit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.estimates import Estimate
    from ..evaluation.scores import Scores

SPLITS = ("train", "val", "test", "final_eval")
_TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC", "log_loss": "log loss"}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Which images to judge.")
@click.option("--pack", type=click.Path(path_type=Path), help="Where the run's pack is now, if it was moved.")
@click.option("--originals", type=click.Path(path_type=Path), help="Folder of the sources: the report shows its images at their own resolution.")
@click.option("--processes", type=click.IntRange(1), help="How many share the work.  [default: one for every GPU, else one]")
@click.option("--draws", type=click.IntRange(0), default=2000, show_default=True, help="Resamples of the patients for the intervals.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
def evaluate(run: Path, split: str, pack: Path | None, originals: Path | None, processes: int | None, draws: int, seed: int) -> None:
    """Judge the best weights of a run, with intervals, and write the report.

    Writes predictions-SPLIT.parquet, scores-SPLIT.json and report.html (report-SPLIT.html for other splits than test) into RUN.
    """
    evaluate_and_show(run, split=split, pack=pack, originals=originals, processes=processes, draws=draws, seed=seed)


def evaluate_and_show(
    run: Path,
    *,
    split: str = "test",
    pack: Path | None = None,
    originals: Path | None = None,
    processes: int | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> None:
    from ..evaluation.evaluate import evaluate as evaluate_run
    from .progress import stage_progress

    with stage_progress() as progress:
        scores = evaluate_run(run, split=split, pack=pack, originals=originals, processes=processes, draws=draws, seed=seed, progress=progress)
    _track(scores, run)
    _show(scores, run)


def _track(scores: Scores, run: Path) -> None:
    """Hand figures and files to the run's tracking; a server that is away gets them from ``scanvit track sync``."""
    from ..evaluation.evaluate import report_path
    from ..training.run_folder import load_run
    from ..training.shipping import ship_now
    from ..training.tracking import record_scores

    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    values = {f"{scores.split}_{name}{end}": getattr(estimate, key) for name, estimate in scores.overall.items() for end, key in ends}
    for class_name, of_class in scores.per_class.items():
        values |= {f"{scores.split}_{metric}/{class_name}": estimate.value for metric, estimate in of_class.figures.items()}
    files = (f"predictions-{scores.split}.parquet", f"scores-{scores.split}.json", report_path(run, scores.split).name)
    record_scores(run, values, step=scores.checkpoint["step"], epoch=scores.checkpoint["epoch"], files=files)
    if not ship_now(run, load_run(run).tracking):
        click.echo(f"The tracking server did not get the scores; send them later: scanvit track sync {run}", err=True)


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
    """Fits 80 columns; the report has every figure with its decimals."""
    from rich.table import Table
    from rich.text import Text

    shown = {"recall": "sensitivity %", "specificity": "specificity %", "auroc": "AUROC"}
    table = Table(box=None, pad_edge=False, title=f"\nby class, with {scores.interval['level']:.0%} intervals", title_justify="left", title_style="")
    table.add_column("class", overflow="fold")
    for title in ("images", *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for name, of_class in scores.per_class.items():
        cells = (_compact(of_class.figures[metric], in_percent=metric != "auroc") for metric in shown)
        table.add_row(Text(printable(name)), f"{of_class.images:,}", *cells)
    return table


def _compact(estimate: Estimate, *, in_percent: bool) -> str:
    """ "72 (36-100)" or "0.97 (0.92-1.00)"; a figure without an interval stands alone, an undefined one is a dash."""
    if estimate.value is None:
        return "-"
    show = (lambda value: f"{100 * value:.0f}") if in_percent else (lambda value: f"{value:.2f}")
    return show(estimate.value) if estimate.low is None or estimate.high is None else f"{show(estimate.value)} ({show(estimate.low)}-{show(estimate.high)})"

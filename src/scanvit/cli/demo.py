"""``scanvit demo``."""

from __future__ import annotations

from pathlib import Path

import click

_PATIENTS_PER_CLASS = 60


@click.command()
@click.option("-o", "--out", default="demo", type=click.Path(path_type=Path), metavar="DIR", help="Where everything goes.", show_default=True)
def demo(out: Path) -> None:
    """The whole road on drawn images, in about three minutes.

    Draws phantom X-rays and B-scans, prepares a pack, trains a small network, evaluates it and writes the report. Interrupted, the same
    command goes on where it stopped; finished stages are not repeated.
    """
    phantoms, pack, run_dir = out / "phantoms", out / "pack", out / "runs" / "tiny"
    _draw(phantoms)
    _prepare(phantoms, pack)
    _train(pack, run_dir)
    _evaluate(run_dir)
    _close(out, phantoms, pack, run_dir)


def _stage(number: int, what: str) -> None:
    click.secho(f"\n{number}/4  {what}", bold=True)


def _draw(phantoms: Path) -> None:
    from ..data.phantoms.folder import draw_phantoms
    from .progress import stage_progress

    _stage(1, "Drawing phantom images")
    if phantoms.is_dir():  # it appears whole or not at all
        click.echo(f"{phantoms} is there already")
        return
    with stage_progress() as progress:
        summary = draw_phantoms(phantoms, patients_per_class=_PATIENTS_PER_CLASS, progress=lambda done, total: progress("Drawing", done, total))
    click.echo(f"{summary.images:,} images of {summary.patients:,} phantom patients, some broken or doubled on purpose")


def _prepare(phantoms: Path, pack: Path) -> None:
    from ..data.prepare import prepare
    from .pack_tables import show_summary
    from .progress import stage_progress

    _stage(2, "Preparing the pack: decode, drop what is broken or doubled, split by patient, audit")
    if pack.is_dir():
        click.echo(f"{pack} is there already")
        return
    with stage_progress() as progress:
        summary = prepare(phantoms, pack, progress=progress)
    show_summary(summary, shown_path=pack, next_command=False)


def _train(pack: Path, run_dir: Path) -> None:
    from ..core.loading import load_experiment
    from ..data.pack import Pack
    from ..training.run_folder import SETTINGS, is_finished, load_run

    _stage(3, "Training the experiment 'tiny', tracked in a local MLflow")
    if is_finished(run_dir):
        click.echo(f"{run_dir} is finished already")
        return
    opened = Pack.open(pack)
    experiment = load_run(run_dir) if (run_dir / SETTINGS).is_file() else load_experiment("tiny")

    from ..training.launch import launch

    launch(experiment, opened, run_dir, show_progress=True)


def _evaluate(run_dir: Path) -> None:
    from .evaluate import evaluate_and_show

    _stage(4, "Evaluating the best checkpoint on the test split")
    evaluate_and_show(run_dir)


def _close(out: Path, phantoms: Path, pack: Path, run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="\nWhere everything is", title_justify="left", title_style="bold", show_header=False)
    table.add_row("images", str(phantoms), "drawn, with metadata.csv and sources.yaml")
    table.add_row("pack", str(pack), "decoded, split by patient, audited")
    table.add_row("run", str(run_dir), "settings, events, checkpoints, predictions, scores")
    table.add_row("weights", str(run_dir / "checkpoint.pth"), "scanvit.load_model() opens it")
    table.add_row("report", str(run_dir / "report.html"), "open it in a browser")
    table.add_row("tracking", f"scanvit ui {run_dir.parent}", "opens MLflow's pages")
    console = Console()
    console.print(table)
    console.print("Next, with images of your own (a folder or an archive with one folder a class):\n", highlight=False)
    console.print(f"  scanvit data prepare IMAGES -o {out.parent / 'packs' / 'mine'}", highlight=False)

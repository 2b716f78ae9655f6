"""``scanvit train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..core.config import Experiment
    from ..training.result import FitResult

_EPILOG = """\b
Examples:
  scanvit train tiny --pack packs/mine
  scanvit train modern --pack packs/mine --run-dir runs/first --set optimizer.lr=3e-4
  scanvit train runs/first/experiment.yaml                the same run again
  scanvit train --resume runs/first                       go on after an interruption, exactly
  scanvit train modern --pack packs/mine --set trainer.devices=2     two processes: on two GPUs, or on a CPU

An interrupted run also continues when the very same command, with its --run-dir, is given again."""


@click.command(epilog=_EPILOG)
@click.argument("experiment", required=False)
@click.option("--pack", type=click.Path(path_type=Path), help="The pack to train on (scanvit data prepare makes one).")
@click.option("-o", "--run-dir", type=click.Path(path_type=Path), help="Where the run goes.  [default: runs/EXPERIMENT-TIME]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. trainer.max_epochs=2. May be repeated.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Continue this run from its newest checkpoint.")
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="With several processes: how often to start them again from the newest checkpoint after one was killed, crashed or stalled.",
)
@click.option("--list", "show_list", is_flag=True, help="List the shipped experiments.")
def train(
    experiment: str | None,
    pack: Path | None,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    resume: Path | None,
    max_restarts: int,
    show_list: bool,
) -> None:
    """Train a network on a pack.

    EXPERIMENT is the name of a shipped experiment (--list) or a YAML file.
    """
    if show_list:
        _list_experiments()
        return
    if resume is not None:
        if experiment or run_dir or overrides:
            raise click.UsageError("--resume continues a run as it is: leave out EXPERIMENT, --run-dir and --set.")
        _resume(resume, pack, max_restarts=max_restarts)
        return
    if experiment is None:
        raise click.UsageError("Name an experiment: scanvit train tiny --pack PACK. scanvit train --list shows the shipped ones.")
    _start(experiment, pack, run_dir, overrides, max_restarts=max_restarts)


def _start(name: str, pack: Path | None, run_dir: Path | None, overrides: tuple[str, ...], *, max_restarts: int) -> None:
    from dataclasses import replace

    from ..core.errors import ConfigError
    from ..core.loading import load_experiment
    from ..core.runtime import World

    experiment = load_experiment(name, overrides)
    if pack is not None:
        experiment = replace(experiment, data=replace(experiment.data, pack=str(pack), fingerprint=None))
    if run_dir is None and (World.is_launched() or experiment.trainer.num_nodes > 1):
        raise ConfigError("Several processes or machines have to write the same run.", hint="Say where it goes: --run-dir RUN")
    _launch(experiment, run_dir, max_restarts=max_restarts)


def _resume(run_dir: Path, pack: Path | None, *, max_restarts: int) -> None:
    from dataclasses import replace

    from ..training.run_folder import is_finished, load_run

    experiment = load_run(run_dir)
    if is_finished(run_dir):
        click.echo(f"{run_dir} is finished already. Next: scanvit evaluate {run_dir}")
        return
    if pack is not None:  # the pack has moved; its fingerprint must be the same
        experiment = replace(experiment, data=replace(experiment.data, pack=str(pack)))
    _launch(experiment, run_dir, max_restarts=max_restarts)


def _launch(experiment: Experiment, run_dir: Path | None, *, max_restarts: int) -> None:
    from ..core.errors import PackMissingError
    from ..core.runtime import World
    from ..data.pack import Pack
    from ..storage.new_folder import new_folder

    if experiment.data.pack is None:
        raise PackMissingError("No pack is given to train on.", hint="Add --pack PACK. Make one with: scanvit data prepare SOURCES -o PACK")
    pack = Pack.open(experiment.data.pack)

    from ..training.launch import launch  # the slow import comes after everything that can be refused at once

    run_dir = run_dir or new_folder(Path("runs"), experiment.name)
    is_first = World.from_environment().rank == 0
    if is_first:
        click.echo(f"Training {experiment.name} on {experiment.data.pack} into {run_dir}")
    try:
        result = launch(experiment, pack, run_dir, show_progress=True, max_restarts=max_restarts)
    except KeyboardInterrupt:
        if is_first:
            click.echo(f"Go on with: scanvit train --resume {run_dir}", err=True)
        raise
    if is_first:
        show(result)


def show(result: FitResult) -> None:
    """Where everything is, and what to type next."""
    from ..storage.mlflow_client import describe_place
    from ..training.tracking_state import TrackingState

    rows = {"run": result.run_dir, "best epoch": f"{result.best_epoch}, val_loss {result.best_val_loss:.4f}", "weights": result.run_dir / "checkpoint.pth"}
    if result.tracking_uri:
        place = describe_place(result.tracking_uri, TrackingState.load(result.run_dir).run)
        rows["tracked"] = place + ("" if result.tracked else f"; send the rest: scanvit track sync {result.run_dir}")
    rows["next"] = f"scanvit evaluate {result.run_dir}"
    for name, value in rows.items():
        click.echo(f"{name:<12}{value}")  # no table, which would cut an address on a narrow terminal


def _list_experiments() -> None:
    from rich.console import Console
    from rich.table import Table

    from ..core.loading import load_experiment, shipped_experiments

    table = Table("experiment", "what it is", "epochs", "optimizer", box=None, pad_edge=False)
    for name in shipped_experiments():
        settings = load_experiment(name)
        recipe = f"{settings.optimizer.name}, lr {settings.optimizer.lr:g}, {settings.schedule.name}"
        table.add_row(name, settings.description, str(settings.trainer.max_epochs), recipe)
    Console().print(table)

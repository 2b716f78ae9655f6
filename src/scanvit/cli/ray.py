"""``scanvit ray``: training on a Ray cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..core.config import Experiment

_TRAIN_EPILOG = """\b
Examples:
  scanvit ray train tiny --pack packs/mine --num-workers 2        on this machine, with a cluster of its own
  RAY_ADDRESS=head:6379 scanvit ray train modern --pack /mnt/object/packs/mine --num-workers 2 \\
      --use-gpu --resources-per-worker GPU=1,CPU=8 --storage s3://ray --run-dir runs/first
  scanvit ray train --resume runs/first                           go on after an interruption, exactly

\b
Environment:
  RAY_ADDRESS                       the cluster's head, HOST:6379; --address goes before it
  RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH  the cluster's token; on by default
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY  of --storage s3://...
  MLFLOW_TRACKING_URI               where the run is tracked; workers must reach it
  DATA_PATH                         where a relative --pack is looked for, and the pack itself where none is given
  SCANVIT_CACHE                     a node's folder for packs and running workers  [default: ~/.cache/scanvit]

An interrupted run also continues when the very same command, with its --run-dir, is given again: after the loss of a worker by itself, after
the loss of this process by hand."""


@click.group()
def ray() -> None:
    """Train on a Ray cluster, or send it a job.

    \b
    scanvit ray train    from a machine of the cluster, or with a cluster of its own
    scanvit ray submit   from anywhere that reaches the dashboard
    """


@ray.command(epilog=_TRAIN_EPILOG)
@click.argument("experiment", required=False)
@click.option("--pack", envvar="DATA_PATH", help="A folder, s3://BUCKET/FOLDER or swift:CONTAINER/FOLDER.  [default: $DATA_PATH]")
@click.option("--num-workers", type=int, help="Processes that train together.  [default: 1]")
@click.option("--use-gpu", is_flag=True, default=None, help="One GPU a worker, with NCCL.")
@click.option("--resources-per-worker", metavar="NAME=N,...", help="What a worker takes of the cluster, e.g. GPU=1,CPU=8.")
@click.option("--storage", metavar="s3://BUCKET|DIR", help="Where checkpoints and the finished run go; every node must reach it.  [default: in the run folder]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where the finished run goes.  [default: runs/EXPERIMENT-TIME]")
@click.option("--max-failures", type=int, help="How often lost workers are started again; -1: always.  [default: 3]")
@click.option("--keep", type=int, help="Best checkpoints to keep in the storage, besides the newest.  [default: 3]")
@click.option("--wait", "wait_s", type=float, help="Seconds to wait, in all, for room on the cluster.  [default: 600]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. trainer.max_epochs=2. May be repeated.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Continue this run from its newest checkpoint.")
@click.option("--address", envvar="RAY_ADDRESS", metavar="HOST:PORT", help="The cluster's head.  [default: $RAY_ADDRESS, else a cluster of its own]")
@click.option("--dashboard", metavar="HOST", help="Give a cluster of its own a dashboard on this host, e.g. 127.0.0.1.")
def train(
    experiment: str | None,
    pack: str | None,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    resume: Path | None,
    address: str | None,
    dashboard: str | None,
    resources_per_worker: str | None,
    **options: Any,
) -> None:
    """Train in several processes on a cluster.

    Workers and nodes may die: the run goes on from its newest checkpoint, with the same weights in the end. EXPERIMENT is a name
    (scanvit train --list) or a YAML file.
    """
    if resume is not None and (experiment or run_dir or overrides):
        raise click.UsageError("--resume continues a run as it is: leave out EXPERIMENT, --run-dir and --set.")
    if resume is None and experiment is None:
        raise click.UsageError("Name an experiment: scanvit ray train tiny --pack PACK. scanvit train --list shows the shipped ones.")

    import os

    from ..cluster.packs import source_of
    from ..cluster.settings import ClusterSettings, load_settings, parse_resources
    from ..core.errors import PackMissingError

    given = {name: value for name, value in options.items() if value is not None}
    if resources_per_worker is not None:
        given["resources"] = parse_resources(resources_per_worker)
    settings = ClusterSettings(**given) if resume is None else replace(load_settings(resume), **given)
    prepared = _prepared(experiment, overrides, resume)
    pack = pack or prepared.data.pack
    if pack is None:
        raise PackMissingError("No pack is given to train on.", hint="Add --pack PACK. Make one with: scanvit data prepare SOURCES -o PACK")
    target = resume or run_dir or Path("runs") / f"{prepared.name}-{datetime.now():%Y%m%d-%H%M%S}"

    from ..cluster.train import train as train_on_cluster  # the slow import comes after everything that can be refused at once
    from .train import show

    click.echo(f"Training {prepared.name} on {pack} into {target}")
    show(train_on_cluster(prepared, source_of(pack, os.environ), target, settings, address=address, dashboard=dashboard))


def _prepared(name: str | None, overrides: tuple[str, ...], resume: Path | None) -> Experiment:
    from ..core.loading import load_experiment
    from ..training.run_folder import load_run

    if resume is not None:
        return load_run(resume)
    assert name is not None
    return load_experiment(name, overrides)

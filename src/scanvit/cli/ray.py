"""``scanvit ray train``, and the group that it is in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .jobs import logs, status, stop, submit
from .ray_options import check_usage, run_options, settings_given

_EPILOG = """\b
Examples:
  scanvit ray train tiny --pack packs/mine --num-workers 2           with a cluster of its own, on this machine
  scanvit ray train modern --address head:6379 --pack /mnt/object/packs/mine --num-workers 2
      --use-gpu --resources-per-worker GPU=1,CPU=8 --storage s3://ray --run-dir runs/first
  scanvit ray train --resume runs/first                              go on after an interruption, exactly
  scanvit ray train --resume s3://ray/first-1a2b3c4d                 the same, from another machine

\b
Environment:
  RAY_ADDRESS                         the cluster's head, HOST:6379; --address goes before it
  RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH  the cluster's token; asked for by default
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   of --storage s3://...
  MLFLOW_TRACKING_URI                 where the run is tracked; workers must reach it
  DATA_PATH                           the pack where none is given, and where a relative --pack is looked for
  SCANVIT_CACHE                       a node's folder for packs and running workers  [default: ~/.cache/scanvit]

A lost worker or node is replaced, and the run goes on by itself. After the loss of this process, give the very same command again, with its
--run-dir."""


@click.group()
def ray() -> None:
    """Train on a Ray cluster, or send it a job.

    \b
    scanvit ray train    from a machine of the cluster, or with a cluster of its own
    scanvit ray submit   from anywhere that reaches the cluster's dashboard
    """


@ray.command(epilog=_EPILOG)
@run_options
@click.option("-o", "--run-dir", type=click.Path(path_type=Path), help="Where the finished run goes.  [default: runs/EXPERIMENT-TIME]")
@click.option("--resume", metavar="RUN|STORAGE/NAME", help="Continue this run from its newest checkpoint.")
@click.option("--address", envvar="RAY_ADDRESS", metavar="HOST:PORT", help="The cluster's head.  [default: $RAY_ADDRESS, else a cluster of its own]")
@click.option("--dashboard", metavar="HOST", help="Give a cluster of its own a dashboard on this host, e.g. 127.0.0.1.")
def train(
    experiment: str | None,
    pack: str | None,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    resume: str | None,
    address: str | None,
    dashboard: str | None,
    resources_per_worker: str | None,
    **options: Any,
) -> None:
    """Train in several processes on a cluster.

    Workers and nodes may die: the run goes on from its newest checkpoint, with the same weights in the end. Checkpoints and the finished run are
    kept in --storage (by default in the run folder, for a cluster on this machine). EXPERIMENT is a name (scanvit train --list) or a YAML file.
    """
    folder = None if resume is None else _resumed_folder(resume, run_dir)
    check_usage("scanvit ray train", experiment, resume, others=bool(overrides or options["name"] or (run_dir and folder != run_dir)))

    import os

    from ..cluster.packs import source_of
    from ..cluster.settings import ClusterSettings, load_settings
    from ..core.errors import PackMissingError
    from ..core.loading import load_experiment
    from ..storage.new_folder import new_folder
    from ..training.run_folder import is_finished, load_run

    given = settings_given(resources_per_worker, options)
    if folder is not None:
        prepared, settings = load_run(folder), replace(load_settings(folder), **given)
        if is_finished(folder):
            click.echo(f"{folder} is finished already. Next: scanvit evaluate {folder}")
            return
    else:
        prepared, settings = load_experiment(str(experiment), overrides), ClusterSettings(**given)
        settings.settle(prepared)
        folder = run_dir
    pack = pack or settings.pack or prepared.data.pack or os.environ.get("DATA_PATH")
    if pack is None:
        raise PackMissingError("No pack is given to train on.", hint="Add --pack PACK. Make one with: scanvit data prepare SOURCES -o PACK")

    if address:
        from ..cluster.session import ensure_reachable

        ensure_reachable(address)

    from ..cluster.train import train as train_on_cluster  # the slow import comes after everything that can be refused at once
    from .train import show

    folder = folder or new_folder(Path("runs"), prepared.name)
    click.echo(f"Training {prepared.name} on {pack} into {folder}")
    show(train_on_cluster(prepared, source_of(pack, os.environ), folder, settings, address=address, dashboard=dashboard))


def _resumed_folder(resume: str, run_dir: Path | None) -> Path:
    """The run folder to go on with: RUN itself, or a new one filled from the storage."""
    if (Path(resume) / "experiment.yaml").is_file() and (Path(resume) / ".lock").exists():
        return Path(resume)
    if "://" not in resume and not Path(resume).is_dir():
        return Path(resume)  # refused further on, as a run that is missing

    from ..cluster.train import take_up

    folder = run_dir or Path("runs") / resume.rstrip("/").rpartition("/")[2]
    take_up(resume, folder)
    return folder


for command in (submit, status, logs, stop):
    ray.add_command(command)

"""What ``scanvit ray train`` and ``scanvit ray submit`` are both given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.argument("experiment", required=False),
    click.option("--pack", help="A folder, s3://BUCKET/FOLDER or swift:CONTAINER/FOLDER.  [default: $DATA_PATH]"),
    click.option("--num-workers", type=int, help="Processes that train together.  [default: 1]"),
    click.option("--min-workers", type=int, help="Go on with as few while the cluster has no more room.  [default: as --num-workers]"),
    click.option("--use-gpu", is_flag=True, default=None, help="One GPU a worker, with NCCL."),
    click.option("--resources-per-worker", metavar="NAME=N,...", help="What a worker takes of the cluster, e.g. GPU=1,CPU=8."),
    click.option("--storage", metavar="s3://BUCKET|DIR", help="Where checkpoints and the finished run go; every node must reach it."),
    click.option("--name", help="Of the run's folder in the storage.  [default: the run folder's name and a random key]"),
    click.option("--max-failures", type=int, help="How often lost workers are started again; -1: always.  [default: 3]"),
    click.option("--keep", type=int, help="Best checkpoints to keep in the storage, besides the newest.  [default: 3]"),
    click.option("--wait", "wait_s", type=float, help="Seconds to wait, in all, for room on the cluster.  [default: 600]"),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. trainer.max_epochs=2. May be repeated."),
)


def run_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_usage(command: str, experiment: str | None, resume: str | None, *, others: bool) -> None:
    """Either an experiment or a run to go on with. ``others``: whether anything was given that a resumed run cannot take."""
    if resume is not None and (experiment or others):
        raise click.UsageError("--resume continues a run as it is: leave out EXPERIMENT, --run-dir, --name and --set.")
    if resume is None and experiment is None:
        raise click.UsageError(f"Name an experiment: {command} tiny --pack PACK. scanvit train --list shows the shipped ones.")


def settings_given(resources_per_worker: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of ClusterSettings that the command line names."""
    from ..cluster.settings import parse_resources

    given = {name: value for name, value in options.items() if value is not None}
    return given if resources_per_worker is None else given | {"resources": parse_resources(resources_per_worker)}

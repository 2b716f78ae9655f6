"""``scanvit track``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def track() -> None:
    """Copy runs to the tracking server."""


@track.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--uri", help="The tracking server.  [default: MLFLOW_TRACKING_URI, or where the run began]")
def sync(runs: tuple[Path, ...], uri: str | None) -> None:
    """Send what the server has not got yet of finished or interrupted runs.

    Safe to repeat: nothing arrives twice. A server that a run has not been sent to before gets all of it.
    """
    from ..training.tracking import describe_place
    from ..training.tracking import sync as send

    for run_dir in runs:
        shipper = send(run_dir, uri=uri)
        click.echo(f"{run_dir} is in {describe_place(shipper.uri)} as run {shipper.state['run_id']}.")

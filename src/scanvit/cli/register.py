"""``scanvit register``."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\b
Examples:
  scanvit register runs/mine
  scanvit register runs/mine --alias candidate --name chest-and-oct
  scanvit register runs/mine --force "the champion was trained on leaked images"

\b
Then, with MLFLOW_TRACKING_URI set, in Python:
  mlflow.pyfunc.load_model("models:/scanvit@champion").predict([{"image": data}])
  scanvit.load_model("models:/scanvit@champion")"""


@click.command(epilog=_EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--alias", default="champion", show_default=True, help="What the version is called from now on.")
@click.option("--name", help="The registered model.  [default: the run's tracking.experiment_name]")
@click.option("--force", metavar="REASON", help="Register in spite of the gates; the reason is kept as a tag of the version.")
@click.option("--uri", help="The tracking server.  [default: MLFLOW_TRACKING_URI, or where the run began]")
def register(run: Path, alias: str, name: str | None, force: str | None, uri: str | None) -> None:
    """Put a judged run into MLflow's model registry under an alias.

    Refused where the audit of its data failed and nobody acknowledged it (exit code 3), and where its test scores are worse than those of
    the version that has the alias, beyond the interval (exit code 71). Safe to repeat: a checkpoint is registered once.
    """
    from ..training.registry import register as register_run
    from . import printable

    done = register_run(run, alias=alias, name=name, force=force, uri=uri)
    click.echo(printable(done.judgement))
    what = "is" if done.created else "was already"
    click.echo(printable(f"{run} {what} version {done.version} of {done.name}, now with the alias {done.alias}, in {done.place}."))
    click.echo(printable(f'Load it: mlflow.pyfunc.load_model("models:/{done.name}@{done.alias}")'))

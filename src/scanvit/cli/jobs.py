"""``scanvit ray submit``, ``status``, ``logs`` and ``stop``: runs as jobs of a cluster elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import printable
from .ray_options import check_usage, run_options, settings_given

if TYPE_CHECKING:
    from ..cluster.jobs import Job

_SUBMIT_EPILOG = """\b
Examples:
  scanvit ray submit modern --address http://127.0.0.1:8265 --runtime-env runtime.json --pack /mnt/object/packs/mine
      --num-workers 2 --use-gpu --resources-per-worker GPU=1,CPU=8 --storage s3://ray --follow
  scanvit ray submit --resume s3://ray/modern-20260102-030405 --address http://127.0.0.1:8265

\b
runtime.json, where the cluster needs other values than are set here:
  {"env_vars": {"DATA_PATH": "/mnt/object", "MLFLOW_TRACKING_URI": "http://mlflow:8000"}}

DATA_PATH and the variables of storage and tracking (AWS_*, OS_*, ST_*, MLFLOW_TRACKING_*, MLFLOW_S3_*) that are set here go with the job; what
runtime.json says goes before. Whoever may read the cluster's jobs can read them. A "pip" list in it is installed on the cluster before the job
starts."""

_address_option = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    metavar="URL",
    help="The cluster's dashboard; also $RAY_API_SERVER_ADDRESS.",
)
_job_argument = click.argument("job_id", metavar="JOB")


@click.command(epilog=_SUBMIT_EPILOG)
@run_options
@_address_option
@click.option("--resume", metavar="STORAGE/NAME", help="Continue this run from its newest checkpoint.")
@click.option("--runtime-env", type=click.Path(path_type=Path), metavar="FILE", help="Ray's runtime environment: env_vars, pip.")
@click.option("--follow", is_flag=True, help="Show the job's output, and end as it ends.")
def submit(
    experiment: str | None,
    overrides: tuple[str, ...],
    address: str,
    resume: str | None,
    runtime_env: Path | None,
    follow: bool,
    resources_per_worker: str | None,
    pack: str | None,
    **options: Any,
) -> None:
    """Send a run to a cluster as a job.

    The options are those of scanvit ray train; paths are the cluster's. EXPERIMENT is resolved here and goes along.
    """
    check_usage("scanvit ray submit", experiment, resume, others=bool(overrides or options["name"]))
    if resume is None and options["storage"] is None:
        raise click.UsageError("A job keeps nothing on the machine that it happens to run on: say where its run goes, with --storage s3://BUCKET.")

    import os

    from ..cluster.jobs import JobServer, job_environment, read_runtime_env, submit_run
    from ..cluster.settings import ClusterSettings
    from ..core.loading import load_experiment

    settings = ClusterSettings(**settings_given(resources_per_worker, options))
    prepared = load_experiment(experiment, overrides) if experiment else None
    if prepared is not None:
        settings.settle(prepared)  # refuses here what the job would refuse
    environment = job_environment(read_runtime_env(runtime_env), os.environ)
    time = f"{datetime.now():%Y%m%d-%H%M%S}"
    if resume is not None:
        run = resume.rstrip("/").rpartition("/")[2]
        job_id = f"{run}-resumed-{time}"
        arguments = ["--resume", resume, "--run-dir", f"runs/{run}"]
    else:
        assert prepared is not None
        run = job_id = options["name"] = options["name"] or f"{prepared.name}-{time}"
        arguments = ["--run-dir", f"runs/{run}"]
    arguments += _passed_on(options | {"pack": pack, "resources_per_worker": resources_per_worker})
    server = JobServer(address)
    submit_run(server, prepared, arguments, name=job_id, runtime_env=environment)
    click.echo(f"Submitted {job_id} with the variables {', '.join(sorted(environment['env_vars']))}.")
    place = resume or f"{options['storage'].rstrip('/')}/{run}"
    if follow:
        _follow(server, job_id, address)
        click.echo(f"\nThe run is in {place}/run.")
    else:
        click.echo(f"Its output: scanvit ray logs {job_id} --follow --address {address}\nThe finished run will be in {place}/run.")
    if place.startswith("s3://"):
        click.echo(f"Bring it here: scanvit data pull {place}/run runs/{run}")


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@_address_option
def status(job_id: str | None, address: str) -> None:
    """Show a cluster's jobs, or one of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..cluster.jobs import JobServer

    server = JobServer(address)
    jobs = [server.job(job_id)] if job_id else server.jobs()
    if not jobs:
        click.echo(f"No jobs at {address}.")
        return
    table = Table("job", "status", "exit code", "started", "took", box=None, pad_edge=False)
    for job in jobs:
        code = "" if job.exit_code is None else str(job.exit_code)
        started = f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M:%S}" if job.started else ""
        table.add_row(Text(printable(job.job_id), no_wrap=True), job.status, code, started, _took(job))
    Console(highlight=False, markup=False).print(table)
    if job_id:
        click.echo(f"\n{printable(jobs[0].entrypoint)}\n{printable(jobs[0].message)}")


@click.command()
@_job_argument
@_address_option
@click.option("--follow", "-f", is_flag=True, help="Go on until the job's end, and end as it ends.")
def logs(job_id: str, address: str, follow: bool) -> None:
    """Show what a job has written."""
    from ..cluster.jobs import JobServer

    server = JobServer(address)
    if follow:
        _follow(server, job_id, address)
    else:
        click.echo(printable(server.logs(job_id).expandtabs()), nl=False)


@click.command()
@_job_argument
@_address_option
def stop(job_id: str, address: str) -> None:
    """Stop a job; its run writes a checkpoint first.

    It goes on with scanvit ray submit --resume STORAGE/NAME.
    """
    from ..cluster.jobs import JobServer

    server = JobServer(address)
    click.echo(f"{job_id} was asked to stop." if server.stop(job_id) else f"{job_id} is over: {server.job(job_id).status}.")


def _follow(server: Any, job_id: str, address: str) -> None:
    from ..cluster.jobs import check_succeeded

    try:
        job = server.follow(job_id, lambda text: click.echo(printable(text.expandtabs()), nl=False))
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on. Its output: scanvit ray logs {job_id} --follow --address {address}; to stop it: scanvit ray stop {job_id}", err=True)
        raise
    check_succeeded(job, address)


def _passed_on(options: dict[str, Any]) -> list[str]:
    """The options of ``scanvit ray train`` as they were given here."""
    names = {"wait_s": "wait"}
    arguments = []
    for name, value in options.items():
        if value is not None:
            flag = f"--{names.get(name, name).replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def _took(job: Job) -> str:
    return f"{job.ended - job.started:,.0f} s" if job.started and job.ended else ""

"""``scanvit platform``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import printable
from .progress import copy_progress, size_text, stoppable

if TYPE_CHECKING:
    from ..platform.health import Health
    from ..platform.services import Service
    from ..platform.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT = ".scanvit-platform"
_PROFILES = ("mlflow", "ray", "ray-client", "jupyter", "monitoring")
_LOOPBACK = "127.0.0.1"

_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    envvar="SCANVIT_PLATFORM_DIR",
    default=_DEFAULT,
    show_default=True,
    help="Where init made the platform; also $SCANVIT_PLATFORM_DIR.",
)
_bind_option = click.option("--bind", metavar="ADDRESS", help=f"Listen on this IPv4 address of the machine, 0.0.0.0 for all.  [default: {_LOOPBACK}]")
_accelerator_option = click.option("--accelerator", type=click.Choice(["cpu", "cuda", "rocm"]), help="Which images and devices Ray and Jupyter get.")


def _engine_options(command: F) -> F:
    native = click.option("--native", is_flag=True, help="Without containers: PostgreSQL, Swift, MLflow, Ray as processes of this machine.")
    engine = click.option("--engine", type=click.Choice(["docker", "podman"]), help="The container engine.  [default: the one installed]")
    return native(engine(command))


@click.group()
def platform() -> None:
    """Run the services: MLflow with PostgreSQL and an object store, Ray, Jupyter, monitoring.

    \b
      scanvit platform init                  # once: ports and random secrets, in .scanvit-platform/.env
      scanvit platform up mlflow ray         # in containers; --native: as plain processes
      scanvit platform status
      . .scanvit-platform/client.env         # the address, the user and the password, for this shell
      scanvit train modern --pack packs/mine # tracked there
      scanvit platform backup backups/monday
      scanvit platform down
    """


@platform.command()
@click.argument("folder", default=_DEFAULT, type=click.Path(path_type=Path, file_okay=False, resolve_path=True), envvar="SCANVIT_PLATFORM_DIR", metavar="[DIR]")
@_bind_option
@_accelerator_option
def init(folder: Path, bind: str | None, accelerator: str | None) -> None:
    """Write the settings of a platform, with random secrets, into DIR.

    DIR is by default .scanvit-platform. What is there already stays: a complete one is left alone, a half-finished one is completed. DATA_PATH in
    the environment is the folder of your images. To use an S3 object store that you have, set STORE_ENDPOINT_URL, AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY there.
    """
    from ..platform.settings import init as make
    from ..platform.variables import VARIABLES

    settings, added = make(folder, os.environ, bind=bind, accelerator=accelerator)
    if not added:
        click.echo(f"{folder}/.env is complete: nothing was changed.")
    elif len(added) == len(VARIABLES):
        click.echo(f"{folder}/.env has the ports and secrets (mode 600, ignored by git).")
    else:
        click.echo(f"{folder}/.env was half-finished, or of an older scanvit: {', '.join(added)} added, the rest kept.")
    _tell_what_stays(settings)
    _warn_of_bind(settings)
    click.echo(f"\nNext: scanvit platform up{_dir_words(folder)}          (containers; --native: without)")


@platform.command()
@click.argument("profiles", nargs=-1, type=click.Choice(_PROFILES))
@_folder_option
@_engine_options
@_bind_option
@_accelerator_option
def up(profiles: tuple[str, ...], folder: Path, native: bool, engine: str | None, bind: str | None, accelerator: str | None) -> None:
    """Start services and wait until all are healthy.

    PROFILES are mlflow (the default: MLflow, PostgreSQL, object store), ray, jupyter, monitoring, and in containers ray-client (a Jupyter without
    a GPU that submits jobs to Ray). They are added to what runs already. A change in .env takes effect with the next up.

    \b
      scanvit platform up
      scanvit platform up mlflow ray monitoring
      scanvit platform up --native
      scanvit platform up --bind 10.0.0.5
    """
    from ..platform.control import up as start
    from ..platform.settings import load

    with stoppable(), _health_lines() as on_health:
        health = start(folder, profiles or ("mlflow",), engine=_engine(native, engine), bind=bind, accelerator=accelerator, on_health=on_health)
    settings = load(folder)
    _table(settings, _services(folder), health)
    _warn_of_bind(settings)
    click.echo(f"\nPasswords and tokens: {folder}/.env. To use the services from a shell:  . {folder}/client.env")


@platform.command()
@_folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def status(folder: Path, as_json: bool) -> None:
    """Ask each service, through its own protocol, whether it does its work.

    Exit code 94 where one does not, 93 where the platform is not up.
    """
    from ..core.errors import UnhealthyError
    from ..platform.control import last_words, running
    from ..platform.health import check_all

    settings, engine, services = running(folder)
    health = check_all(services, settings)
    if as_json:
        for service, found in zip(services, health, strict=True):
            click.echo(json.dumps({"service": found.service, "address": service.address(settings), "healthy": found.ok, "detail": found.detail}))
    else:
        _table(settings, services, health)
        for name, count in engine.restarts(settings).items():
            if count:
                click.echo(f"{name} died and was restarted {count} time{'s' if count > 1 else ''}.")
    if sick := next((h for h in health if not h.ok), None):
        words = last_words(settings, engine, sick.service)
        said = f"\nIts last words:\n{words}" if words else ""
        raise UnhealthyError(f"{sick.service} is not healthy: {sick.detail}.{said}", hint=sick.hint or "scanvit platform up starts what is down.")


@platform.command()
@click.argument("service")
@_folder_option
@click.option("-n", "--lines", default=100, show_default=True, type=click.IntRange(1, 100_000), help="How many of the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
def logs(service: str, folder: Path, lines: int, follow: bool) -> None:
    """Show what a service has written."""
    from ..platform.control import running

    settings, engine, _ = running(folder)
    with stoppable(), suppress(*((KeyboardInterrupt,) if follow else ())):
        for line in engine.logs(settings, service, lines=lines, following=follow):
            click.echo(printable(settings.redact(click.unstyle(line))))


@platform.command()
@_folder_option
@_engine_options
@click.option("--volumes", is_flag=True, help="Also delete all data: runs, artifacts, accounts. Settings and backups stay.")
def down(folder: Path, native: bool, engine: str | None, volumes: bool) -> None:
    """Stop all services. Their data stays, unless --volumes."""
    from ..platform.control import down as stop

    had_data = stop(folder, volumes=volumes, engine=_engine(native, engine))
    if volumes and not had_data:
        click.echo(f"There was nothing to delete: {folder} has no data of a platform.")
    else:
        click.echo("Stopped; all data is deleted." if volumes else "Stopped. The data stays for the next: scanvit platform up")


@platform.command()
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@_folder_option
def backup(target: Path, folder: Path) -> None:
    """Copy MLflow's database and artifacts into a new folder.

    The platform goes on running. DIR appears when it is whole, with the SHA-256 of every file. It holds no password, but their hashes:
    keep it private.
    """
    from ..platform.backup import backup as copy

    with stoppable(), copy_progress() as progress:
        done = copy(folder, target, progress=progress)
    click.echo(f"{target}: {_counted(done.counts)}, {done.objects:,} artifacts ({size_text(done.size_bytes)})")


@platform.command()
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_folder_option
@click.option("--force", is_flag=True, help="Replace the runs, models and accounts that are there.")
def restore(source: Path, folder: Path, force: bool) -> None:
    """Put a backup into a running platform.

    Every file is checked first. The database is replaced in one step, so that a failure leaves the old one; one of an older MLflow is
    upgraded. The administrator has the password of .env afterwards.
    """
    from ..platform.restore import restore as put_back

    with stoppable(), copy_progress() as progress:
        done = put_back(folder, source, force=force, progress=progress, on_health=lambda health, time_s: None)
    click.echo(f"Restored {_counted(done.counts)}, {done.objects:,} artifacts ({size_text(done.size_bytes)}) from {source}.")


def _engine(native: bool, engine: str | None) -> str | None:
    if native and engine:
        raise click.UsageError("--native and --engine exclude each other.")
    return "native" if native else engine


def _dir_words(folder: Path) -> str:
    return "" if folder == Path(_DEFAULT).resolve() else f" --dir {folder}"


def _counted(counts: dict[str, int]) -> str:
    return f"{counts.get('runs', 0):,} runs of {counts.get('experiments', 0):,} experiments, {counts.get('metrics', 0):,} metric values"


def _services(folder: Path) -> list[Service]:
    from ..platform.control import running

    return running(folder)[2]


def _tell_what_stays(settings: Settings) -> None:
    """Of what ``init`` takes from the environment for a new platform alone."""
    from ..storage.mlflow_client import without_credentials

    for name in ("DATA_PATH", "STORE_ENDPOINT_URL"):
        has, wanted = settings[name], os.environ.get(name)
        if wanted and wanted != has:
            change = f"change it in {settings.folder}/.env, then: scanvit platform up{_dir_words(settings.folder)}"
            click.echo(printable(f"{name} stays {has or 'empty'}, not {without_credentials(wanted)} as in the environment; to have that, {change}"), err=True)


def _warn_of_bind(settings: Settings) -> None:
    if settings.bind != _LOOPBACK:
        click.echo(
            f"{click.style('warning:', fg='yellow')} the services listen on {settings.bind}, without TLS: passwords and images cross the network "
            f"readable. Loopback is the default for that reason; use it with ssh -L, or a firewall and a proxy with TLS before this address.",
            err=True,
        )


def _table(settings: Settings, services: Sequence[Service], health: Sequence[Health]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("service", "address", "state", "opened by"):
        table.add_column(title, overflow="fold", no_wrap=title == "address")
    for service, found in zip(services, health, strict=True):
        state = Text(printable(found.detail), style="green" if found.ok else "red")
        table.add_row(service.name, service.address(settings), state, service.opened_by)
    Console(highlight=False, markup=False).print(table)


@contextmanager
def _health_lines() -> Iterator[Callable[[Health, float], None]]:
    """A function to call with (health, seconds): a line for each service that has come up, and a spinner meanwhile on a terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)

    def show(health: Health, time_s: float) -> None:
        console.print(f"{health.service} is healthy after {time_s:.0f} s: {health.detail}")

    if not console.is_terminal:
        yield show
        return
    with console.status("Starting ..."):
        yield show

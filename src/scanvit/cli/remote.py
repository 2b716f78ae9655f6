"""``scanvit remote``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from . import printable

F = TypeVar("F", bound=Callable[..., Any])
_STEPS = "packages,driver,check,install,image,data,platform"
_DATA_VARIABLES = ("OS_", "ST_", "AWS_")


def setup_options(command: F) -> F:
    """What a set-up needs to be told, here and for ``scanvit chameleon``."""
    options = [
        click.option("--gpu", type=click.Choice(["auto", "none", "nvidia", "amd"]), default="auto", show_default=True, help="Whose driver to install."),
        click.option("--data", "data_remote", metavar="REMOTE:PATH", help="Object store to mount at DATA_PATH there; its credentials from this environment."),
        click.option(
            "--profile", "profiles", multiple=True, type=click.Choice(["mlflow", "ray", "jupyter", "monitoring"]), help="Of the platform.  [default: mlflow]"
        ),
        click.option("--steps", default=_STEPS, show_default=True, help="Which, in this order."),
        click.option("--key", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Private ssh key.  [default: ssh's own choice]"),
        click.option("--dry-run", is_flag=True, help="Say each step and do nothing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def remote() -> None:
    """Make another machine ready: Docker, GPU driver, images, data, platform."""


@remote.command()
@click.argument("host")
@click.option("--user", help="On the machine; it needs sudo without a password, or be root.  [default: ssh's own choice]")
@click.option("--port", type=click.IntRange(1, 65535), help="Of ssh.")
@click.option("--folder", default="scanvit", show_default=True, help="For the checkout there.")
@setup_options
def setup(host: str, user: str | None, port: int | None, folder: str, key: Path | None, dry_run: bool, **choices: Any) -> None:
    """Set up HOST, an Ubuntu machine, over ssh. Safe to repeat.

    Copies the committed files of this checkout there and runs deploy/remote/setup, which also runs by itself on the machine. Reboots it
    where a GPU driver asks for that, and goes on after.

    \b
      scanvit remote setup gpu-box --gpu nvidia
      scanvit remote setup 10.0.0.7 --user ubuntu --data swift:xrays --profile mlflow --profile ray
      scanvit remote setup gpu-box --steps check
      scanvit remote setup gpu-box --dry-run
    """
    from ..platform.cloud import remote as machine

    target = machine.Host(address=host, user=user, port=port, key=key, folder=folder)
    steps, settings = parse_setup(choices, os.environ)
    if dry_run:
        for line in machine.describe(target, steps, settings):
            click.echo(line)
        return
    machine.setup(target, steps, settings, say=lambda line: click.echo(printable(line)))
    click.echo(f"\n{host} is ready. Open it with:  {target.words()}")


def parse_setup(choices: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """(steps, settings of the script) from the options of ``setup_options``."""
    from ..core.errors import ConfigError
    from ..platform.cloud.remote import STEPS

    steps = [step.strip() for step in choices["steps"].split(",") if step.strip()]
    if unknown := [step for step in steps if step not in STEPS]:
        raise ConfigError(f"{unknown[0]!r} is no step.", hint=f"Steps are: {', '.join(STEPS)}.")
    if not steps:
        raise ConfigError("--steps names no step.", hint=f"Steps are: {', '.join(STEPS)}.")
    settings = {"GPU": choices["gpu"], "PROFILES": " ".join(choices["profiles"]) or "mlflow"}
    if choices["data_remote"]:
        from ..storage.credentials import credentials_from
        from ..storage.remote import parse_remote

        credentials_from(environment, parse_remote(choices["data_remote"]).kind)  # says what is missing before anything starts
        settings["DATA_REMOTE"] = choices["data_remote"]
        settings |= {name: value for name, value in environment.items() if name.startswith(_DATA_VARIABLES)}
    return steps, settings

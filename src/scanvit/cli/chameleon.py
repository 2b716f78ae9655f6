"""``scanvit chameleon``."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from . import printable
from .remote import parse_setup, setup_options

F = TypeVar("F", bound=Callable[..., Any])
_lease_option = click.option("--lease", required=True, metavar="NAME", help="Of the lease.")
_site_option = click.option("--site", default="CHI@TACC", show_default=True, help="Of Chameleon; a bare-metal one.")
_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".scanvit-platform",
    show_default=True,
    help="Keeps the record of what was made.",
)


@click.group()
def chameleon() -> None:
    """Run on a leased machine of Chameleon Cloud.

    Credentials are the OS_* variables of an application credential: source its openrc file first.

    \b
      scanvit chameleon up --lease xrays --node-type gpu_mi100 --gpu amd --key ~/.ssh/id_ed25519
      scanvit chameleon status --lease xrays
      scanvit chameleon down --lease xrays
    """


@chameleon.command()
@_lease_option
@_site_option
@click.option("--image", default="CC-Ubuntu24.04-hwe", show_default=True, help="That the server starts from.")
@click.option("--node-type", help="Lease a node of this type if there is no such lease, e.g. gpu_mi100, gpu_a100_pcie.")
@click.option("--days", type=click.IntRange(1, 7), default=1, show_default=True, help="Of a lease that is made.")
@click.option("--key-name", help="Of the key pair at the site.  [default: scanvit-USER]")
@click.option("--network", default="sharednet1", show_default=True, help="Of the project, that the server joins.")
@_folder_option
@setup_options
def up(folder: Path, key: Path | None, key_name: str | None, dry_run: bool, **choices: Any) -> None:
    """Bring a machine up: lease, server, floating IP, and the set-up of scanvit remote. Safe to repeat: what is there is found.

    It ends with the platform's addresses and the ssh command.
    """
    from ..platform.cloud import chameleon as cloud
    from ..platform.cloud import remote as machine

    steps, settings = parse_setup(choices, os.environ)
    public = key.with_name(f"{key.name}.pub") if key else None
    wanted = cloud.Wanted(
        **{name: choices[name] for name in ("lease", "site", "image", "node_type", "days", "network")},
        key_name=key_name or f"scanvit-{getpass.getuser()}",
        public_key=public.read_text(encoding="utf-8").strip() if public and public.is_file() else None,
    )
    if dry_run:
        lines = [*cloud.describe(wanted), *machine.describe(machine.Host(address="FLOATING-IP", user=cloud.USER, key=key), steps, settings)]
        for number, line in enumerate(lines, 1):
            click.echo(f"{number}. {line}")
        return
    address = cloud.up(wanted, folder, say=_say)
    host = machine.Host(address=address, user=cloud.USER, key=key)
    machine.setup(host, steps, settings, say=_say)
    _show_addresses(host)


@chameleon.command()
@_lease_option
@_site_option
def status(lease: str, site: str) -> None:
    """Say what of a lease is there."""
    from ..platform.cloud.chameleon import status as look

    for name, value in look(lease, site).items():
        click.echo(f"{name:8} {printable(value)}")


@chameleon.command()
@_lease_option
@_folder_option
def down(lease: str, folder: Path) -> None:
    """Give back what up made, and nothing else: a lease or an address that was there before stays."""
    from ..platform.cloud.chameleon import down as give_back

    give_back(lease, folder, say=_say)


def _say(line: str) -> None:
    click.echo(printable(line))


def _show_addresses(host: Any) -> None:
    """The services listen on the machine's loopback: ssh leads there."""
    ports = {"MLflow": 8000, "object store": 9000, "Ray": 8265, "Jupyter": 8888, "Grafana": 3000}
    tunnels = " ".join(f"-L {port}:127.0.0.1:{port}" for port in ports.values())
    click.echo(f"\nThe machine:   {host.words()}")
    click.echo(f"The services:  {host.words()} -N {tunnels}")
    for name, port in ports.items():
        click.echo(f"  {name:13} http://127.0.0.1:{port}")
    click.echo(f"Their secrets: {host.folder}/.scanvit-platform/.env on the machine")

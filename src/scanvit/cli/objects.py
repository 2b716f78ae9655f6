"""``scanvit data pull``, ``push``, ``mount`` and ``ls``: images in an object store (Swift or S3)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import printable
from .progress import copy_progress, size_text, stoppable

if TYPE_CHECKING:
    from ..storage.remote import RemoteObject
    from ..storage.transfer import Transfer

_Row = tuple[str, int | None, int | None]  # name, bytes, number of objects
_DATA_PATH = "/mnt/object"
_REMOTE = "REMOTE:PATH"
_ENVIRONMENT = """\b
REMOTE:PATH is swift:CONTAINER[/FOLDER] or s3:BUCKET[/FOLDER]. Credentials come from the environment alone:
  swift  OS_AUTH_URL, OS_APPLICATION_CREDENTIAL_ID, OS_APPLICATION_CREDENTIAL_SECRET, OS_REGION_NAME
         or ST_AUTH, ST_USER, ST_KEY (version 1)
  s3     AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION
"""

_EXAMPLES = {
    "pull": ["pull swift:scans /data/scans", "pull s3:scans/2026 $DATA_PATH"],
    "push": ["push s3:scans/2026 images/", "push swift:new-bucket images/ --create"],
    "mount": ["mount swift:scans /mnt/object", "mount swift:scans /mnt/object --daemon   # until: fusermount3 -u /mnt/object"],
    "ls": ["ls swift:                  # the buckets", "ls swift:scans             # folders, sizes, numbers of objects", "ls s3:scans/2026 --json"],
}


def _epilog(command: str) -> str:
    lines = [f"  scanvit data {line}" for line in _EXAMPLES[command]]
    return "\n".join(["\b", "Examples:", *lines, "", _ENVIRONMENT])


_remote_argument = click.argument("remote", metavar=_REMOTE)
_folder_argument = click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path), envvar="DATA_PATH", default=Path(_DATA_PATH))
_engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "rclone", "pyarrow", "swiftclient"]),
    default="auto",
    show_default=True,
    help="auto: rclone where it is installed, else pyarrow for s3 and swiftclient for swift.",
)


@click.command(epilog=_epilog("pull"))
@_remote_argument
@_folder_argument
@_engine_option
def pull(remote: str, folder: Path, engine: str) -> None:
    """Copy objects into a folder.

    Each is checked by checksum before it takes its name. DIR is by default $DATA_PATH, else /mnt/object. Interrupted, the same command goes on
    where it stopped; complete, it copies nothing. Files of other content under the same names are replaced, other files stay.
    """
    from ..storage.remote import parse_remote
    from ..storage.transfer import open_store
    from ..storage.transfer import pull as pull_objects

    with stoppable(), copy_progress() as progress:
        done = pull_objects(open_store(parse_remote(remote), os.environ, engine=engine), folder, progress=progress)
    _tell(done, f"in {folder}")
    click.echo(f"\nNext: scanvit data prepare {folder} -o packs/mine")


@click.command(epilog=_epilog("push"))
@_remote_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--create", is_flag=True, help="Make the bucket where it is missing.")
@_engine_option
def push(remote: str, folder: Path, create: bool, engine: str) -> None:
    """Copy a folder into an object store.

    DIR may be one file. All is checked by checksum. Interrupted, the same command goes on where it stopped; complete, it copies nothing.
    Objects of other content under the same names are replaced, other objects stay. Links are refused.
    """
    from ..storage.remote import parse_remote
    from ..storage.transfer import open_store
    from ..storage.transfer import push as push_files

    with stoppable(), copy_progress() as progress:
        done = push_files(open_store(parse_remote(remote), os.environ, engine=engine), folder, create=create, progress=progress)
    _tell(done, f"in {remote}")
    if done.empty_folders:
        click.echo(f"{done.empty_folders:,} empty folders are not there: an object store has none.")


@click.command(epilog=_epilog("mount"))
@_remote_argument
@_folder_argument
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Where read files are kept.  [default: the user's cache folder]")
@click.option("--daemon", is_flag=True, help="Return, and leave the mount until it is unmounted.")
def mount(remote: str, folder: Path, cache: Path | None, daemon: bool) -> None:
    """Mount objects as a read-only folder.

    Until Ctrl-C; needs rclone and FUSE. DIR is by default $DATA_PATH, else /mnt/object; it must be empty or new.
    """
    from ..storage.mount import mount as mount_objects
    from ..storage.remote import parse_remote

    end = f"Unmount it by: fusermount3 -u {folder}" if daemon else "Ctrl-C unmounts it."
    with stoppable(), suppress(*(() if daemon else (KeyboardInterrupt,))):  # the usual ends of a mount
        mount_objects(
            parse_remote(remote), folder, os.environ, cache=cache, daemon=daemon, on_ready=lambda: click.echo(f"{remote} is at {folder}, read-only. {end}")
        )


@click.command(epilog=_epilog("ls"))
@_remote_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with size in bytes and number of objects.")
@_engine_option
def ls(remote: str, as_json: bool, engine: str) -> None:
    """List buckets, folders and objects.

    REMOTE: alone lists the buckets.
    """
    from ..storage.failures import missing
    from ..storage.remote import parse_remote
    from ..storage.transfer import open_store

    place = parse_remote(remote, whole_store=True)
    with stoppable():
        store = open_store(place, os.environ, engine=engine)
        rows: list[_Row] = _rows(store.listing(checksums=False).objects) if place.bucket else [(f"{name}/", None, None) for name in store.top()]
    if place.prefix and not rows:
        raise missing(place)
    if as_json:
        for name, size_bytes, objects in rows:
            click.echo(json.dumps({"name": name, "size_bytes": size_bytes, "objects": objects}))
    else:
        _table(rows)


def _rows(objects: tuple[RemoteObject, ...]) -> list[_Row]:
    """(name, bytes, number of objects), one row for a folder with all below it and one for an object."""
    sums: dict[str, tuple[int, int]] = {}
    for item in objects:
        first, slash, _ = item.name.partition("/")
        size_bytes, count = sums.get(first + slash, (0, 0))
        sums[first + slash] = size_bytes + item.size_bytes, count + 1
    return [(name, size_bytes, count) for name, (size_bytes, count) in sorted(sums.items())]


def _table(rows: list[_Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo("Nothing is there.")
        return
    table = Table(show_footer=any(row[1] is not None for row in rows))
    table.add_column("name", "all", overflow="fold")
    counted = [row for row in rows if row[1] is not None]  # nothing is said of a bucket before it is looked into
    table.add_column("size", size_text(sum(row[1] or 0 for row in counted)) if counted else "", justify="right")
    table.add_column("objects", f"{sum(row[2] or 0 for row in counted):,}" if counted else "", justify="right")
    for name, size_bytes, count in rows:
        table.add_row(Text(printable(name)), "" if size_bytes is None else size_text(size_bytes), "" if count is None else f"{count:,}")
    Console(highlight=False, markup=False).print(table)


def _tell(done: Transfer, where: str) -> None:
    there = done.objects - done.copied
    click.echo(
        f"{done.objects:,} objects, {size_text(done.size_bytes)} {where}: {done.copied:,} copied, {there:,} there already, all checked; {done.time_s:.1f} s"
    )

"""How a pack comes to the nodes: by a path that they all see, or from an object store into a cache, once a node."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import PackError, PackMismatchError
from ..data.pack import Pack
from ..storage.atomic import write_text
from ..storage.remote import KINDS, Remote, parse_remote
from ..storage.transfer import open_store, pull


@dataclass(frozen=True, kw_only=True)
class PackSource:
    """Either ``path`` or ``remote`` says where the pack is."""

    path: str | None = None
    remote: Remote | None = None
    fingerprint: str | None = None
    """Empty only until the driver has read it."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """With the credentials of the remote."""

    def __str__(self) -> str:
        return self.path or str(self.remote)


def is_remote(address: str) -> bool:
    return address.partition(":")[0] in KINDS and ":" in address


def source_of(address: str, environment: Mapping[str, str]) -> PackSource:
    """``s3://BUCKET/FOLDER``, ``swift:CONTAINER/FOLDER``, or a folder; a relative one that is not here is looked for below DATA_PATH."""
    if is_remote(address):
        return PackSource(remote=parse_remote(address), environment=dict(environment))
    path = Path(address).expanduser()
    if not path.is_absolute() and not path.exists() and (data := environment.get("DATA_PATH")) and (Path(data) / path).exists():
        path = Path(data) / path
    return PackSource(path=str(path.resolve()))


def obtain(source: PackSource, cache: Path) -> Pack:
    """Open the pack on this node, fetched and read through once where it comes from an object store.

    Raises PackMismatchError for another pack than the run's, and whatever opening or fetching raises.
    """
    here = f"on the node {os.uname().nodename}"
    pack = Pack.open(source.path) if source.path else _fetch(source, cache)
    if source.fingerprint and pack.fingerprint != source.fingerprint:
        raise PackMismatchError(
            f"{source} {here} has the fingerprint {pack.fingerprint[:12]}, not {source.fingerprint[:12]}.",
            hint="All nodes must see the same pack. Remove the copy that is out of date.",
        )
    return pack


def _fetch(source: PackSource, cache: Path) -> Pack:
    assert source.remote is not None
    folder = cache / "packs" / (source.fingerprint or f"{source.remote.bucket}-{source.remote.prefix.replace('/', '-')}")[:80]
    checked = folder.with_name(f"{folder.name}.checked")
    with _one_at_a_time(folder.with_name(f"{folder.name}.lock")):
        if source.fingerprint is None or not checked.is_file():
            checked.unlink(missing_ok=True)
            pull(open_store(source.remote, source.environment), folder)
            try:
                Pack.open(folder).verify()
            except PackError:
                shutil.rmtree(folder)
                raise
            write_text(checked, f"{source.remote}\n")
        return Pack.open(folder)


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """The processes of a node wait for each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""A machine of Chameleon Cloud for scanvit: lease, server, address, and then the set-up over ssh. Each step finds what is there already.

What was made is written down, so that ``down`` gives back that and nothing else: a lease, a key pair or an address that was there before stays.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...core.errors import CloudError, PlatformStateError
from ...storage.atomic import write_json
from .openstack import Cloud, Resource

Say = Callable[[str], None]
USER = "cc"
"""Of the images that Chameleon makes."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    lease: str
    site: str
    image: str
    node_type: str | None
    """None: the lease has to be there."""
    days: int
    key_name: str
    public_key: str | None
    """To be registered as ``key_name`` where that is not there."""
    network: str


@dataclass(frozen=True, kw_only=True)
class Patience:
    lease_s: float = 900.0
    server_s: float = 1800.0
    """Bare metal is written and booted."""
    port_s: float = 1200.0
    poll_s: float = 10.0


@dataclass
class Made:
    """What ``up`` made itself, by name of the kind: ids. Written after every step."""

    site: str
    ids: dict[str, str] = field(default_factory=dict)


def record_path(folder: Path, lease: str) -> Path:
    return folder / f"chameleon-{lease}.json"


def up(wanted: Wanted, folder: Path, *, say: Say, patience: Patience | None = None, cloud: Cloud | None = None) -> str:
    """The address of a server that answers on port 22. ``folder`` keeps the record. Raises CloudError; what was made until then is on record."""
    patience, cloud = patience or Patience(), cloud or Cloud(wanted.site)
    record = _Record.open(record_path(folder, wanted.lease), wanted.site)
    lease = _lease(cloud, wanted, record, say, patience)
    reservation = next((r["id"] for r in lease["reservations"] if r["resource_type"] == "physical:host"), None)
    if reservation is None:
        raise CloudError(f"The lease {wanted.lease} reserves no node.", hint="Make one with a physical host, or let this command make it: --node-type.")
    if not cloud.has_key(wanted.key_name):
        if wanted.public_key is None:
            raise CloudError(f"There is no key pair {wanted.key_name!r} at {wanted.site}.", hint="Give --key FILE with FILE.pub beside it: it is registered.")
        cloud.create_key(wanted.key_name, wanted.public_key)
        record.add("key_pair", wanted.key_name)
        say(f"key pair {wanted.key_name} registered")
    server = _server(cloud, wanted, reservation, record, say, patience)
    address = _address(cloud, server["id"], record, say)
    _wait_for_port(address, patience, say)
    return address


def describe(wanted: Wanted) -> list[str]:
    """What ``up`` would do."""
    lease = f"or lease one node of type {wanted.node_type} for {wanted.days} days" if wanted.node_type else "which must be there"
    server = f"start it from the reservation with the image {wanted.image} on {wanted.network}"
    return [
        f"log in at {wanted.site} with the OS_* variables of the environment",
        f"find the lease {wanted.lease}, {lease}, and wait until it is active",
        f"find the key pair {wanted.key_name}" + (", or register it" if wanted.public_key else ""),
        f"find the server {server_name(wanted.lease)}, or {server}, and wait until it is active",
        "find its floating IP, or attach a free one of the project, or allocate one",
        "wait until port 22 answers",
    ]


def status(lease: str, site: str, *, cloud: Cloud | None = None) -> dict[str, str]:
    """{lease, ends, server, address}: what is there."""
    cloud = cloud or Cloud(site)
    found, server = cloud.lease(lease), cloud.server(server_name(lease))
    address = cloud.address_of(server["id"]) if server else None
    return {
        "lease": f"{lease}: {found['status']}" if found else f"{lease}: none",
        "ends": str(found["end_date"]) if found else "-",
        "server": f"{server['name']}: {server['status']}" if server else "none",
        "address": str(address["floating_ip_address"]) if address else "none",
    }


def down(lease: str, folder: Path, *, say: Say, cloud: Cloud | None = None) -> None:
    """Give back what ``up`` made, in the reverse order. Raises PlatformStateError without a record; safe to repeat after a failure."""
    path = record_path(folder, lease)
    if not path.is_file():
        raise PlatformStateError(f"There is no record of anything made for the lease {lease} ({path}).", hint="Nothing is given back that is not on record.")
    record = _Record.open(path, None)
    cloud = cloud or Cloud(record.made.site)
    ways = {"address": cloud.delete_address, "server": cloud.delete_server, "key_pair": cloud.delete_key, "lease": cloud.delete_lease}
    for kind, delete in ways.items():
        if identity := record.made.ids.get(kind):
            say(f"{kind.replace('_', ' ')} {identity}: {'given back' if delete(identity) else 'was gone already'}")
            record.remove(kind)
    path.unlink()


def server_name(lease: str) -> str:
    return f"scanvit-{lease}"


class _Record:
    """The file that says what was made."""

    def __init__(self, path: Path, made: Made) -> None:
        self.path, self.made = path, made

    @classmethod
    def open(cls, path: Path, site: str | None) -> _Record:
        """Raises PlatformStateError for a file of another site, or a damaged one."""
        if not path.is_file():
            return cls(path, Made(site=site or ""))
        try:
            made = Made(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise PlatformStateError(f"{path} cannot be read: {error}.", hint="It says what is to be given back: look at it before deleting it.") from None
        if site is not None and made.site != site:
            raise PlatformStateError(
                f"{path} is of {made.site}, not of {site}.", hint=f"Give it back first: scanvit chameleon down --lease {path.stem.removeprefix('chameleon-')}"
            )
        return cls(path, made)

    def add(self, kind: str, identity: str) -> None:
        self.made.ids[kind] = identity
        self._write()

    def remove(self, kind: str) -> None:
        del self.made.ids[kind]
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, asdict(self.made))


def _lease(cloud: Cloud, wanted: Wanted, record: _Record, say: Say, patience: Patience) -> Resource:
    lease = cloud.lease(wanted.lease)
    if lease is None:
        if wanted.node_type is None:
            raise CloudError(
                f"There is no lease {wanted.lease!r} at {wanted.site}.", hint="Make one on the site's page, or name what to lease: --node-type gpu_mi100"
            )
        lease = cloud.create_lease(wanted.lease, node_type=wanted.node_type, days=wanted.days)
        record.add("lease", lease["id"])
        say(f"lease {wanted.lease} made")
    else:
        say(f"lease {wanted.lease} found")
    return _wait("the lease", lambda: cloud.lease(wanted.lease), patience.lease_s, patience, say)


def _server(cloud: Cloud, wanted: Wanted, reservation: str, record: _Record, say: Say, patience: Patience) -> Resource:
    name = server_name(wanted.lease)
    server = cloud.server(name)
    if server is not None and server["status"] == "ERROR" and record.made.ids.get("server") == server["id"]:
        say(f"server {name} failed to start before: deleting it")
        cloud.delete_server(server["id"])
        record.remove("server")
        _gone(lambda: cloud.server(name), patience)
        server = None
    if server is None:
        server = cloud.create_server(name, reservation=reservation, image=wanted.image, key_name=wanted.key_name, network=wanted.network)
        record.add("server", server["id"])
        say(f"server {name} is being started")
    else:
        say(f"server {name} found")
    return _wait("the server", lambda: cloud.server(name), patience.server_s, patience, say)


def _address(cloud: Cloud, server_id: str, record: _Record, say: Say) -> str:
    found = cloud.address_of(server_id)
    if found is None:
        found = cloud.free_address()
        if found is None:
            found = cloud.allocate_address()
            record.add("address", found["id"])
        cloud.attach_address(found["id"], server_id)
    say(f"address {found['floating_ip_address']}")
    return str(found["floating_ip_address"])


def _wait(what: str, look: Callable[[], Resource | None], limit_s: float, patience: Patience, say: Say) -> Resource:
    """Until its status is ACTIVE."""
    start, told = time.monotonic(), ""
    while True:
        found = look()
        state = found["status"] if found else "gone"
        if found and state == "ACTIVE":
            return found
        if state in ("ERROR", "gone"):
            fault = (found or {}).get("fault") or {}
            said = f": {fault['message']}" if fault.get("message") else ""
            raise CloudError(f"{what.capitalize()} is {state}{said}.", hint="Look at the site's page; then give the same command again.")
        if state != told:
            say(f"waiting for {what}: {state}")
            told = state
        if time.monotonic() - start >= limit_s:
            raise CloudError(
                f"{what.capitalize()} is still {state} after {limit_s:.0f} s.", hint="Give the same command again to go on waiting; a lease may start later."
            )
        time.sleep(patience.poll_s)


def _gone(look: Callable[[], Resource | None], patience: Patience) -> None:
    deadline = time.monotonic() + patience.lease_s
    while look() is not None and time.monotonic() < deadline:
        time.sleep(patience.poll_s)


def _wait_for_port(address: str, patience: Patience, say: Say, port: int = 22) -> None:
    say(f"waiting for {address}:{port}")
    deadline = time.monotonic() + patience.port_s
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                hint = "Does a security group of the project let ssh in?"
                raise CloudError(f"{address}:{port} does not answer after {patience.port_s:.0f} s: {error.strerror or error}.", hint=hint) from None
        time.sleep(patience.poll_s)

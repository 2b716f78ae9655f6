"""The few calls of Chameleon Cloud that a machine needs, through python-chi: leases (Blazar), servers (Nova), addresses (Neutron).

python-chi authenticates and finds the services of a site; its own helpers wait without an end, print, and hide why a lease was refused, so that
what they call is called here. Credentials come from the environment alone, as python-chi and every OpenStack tool read them (``OS_*``).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ...core.errors import CloudError, EngineError

log = logging.getLogger(__name__)

PUBLIC_NETWORK = "public"
FLAVOR = "baremetal"
_TIME = "%Y-%m-%d %H:%M"
_CREDENTIALS = "Download an application credential's openrc from the site's page (Identity, Application Credentials), and source it: . app-cred-openrc.sh"
Resource = dict[str, Any]


class Cloud:
    """One site. Every method raises CloudError with what the site said."""

    def __init__(self, site: str) -> None:
        """Raises EngineError without python-chi, CloudError without usable credentials."""
        if not (os.environ.get("OS_APPLICATION_CREDENTIAL_ID") or os.environ.get("OS_USERNAME")):
            raise CloudError("No credentials for Chameleon: OS_APPLICATION_CREDENTIAL_ID is not set.", hint=_CREDENTIALS)
        try:
            with _quiet():
                import chi
                import chi.clients
                from chi import context
        except ImportError as error:
            raise EngineError(f"python-chi is not installed ({error.name}).", hint="scripts/install all, or: pip install 'scanvit[chameleon]'") from None
        self.site, self._clients = site, chi.clients
        with _told(f"logging in at {site}"):
            context.version = "1.0"
            if not os.environ.get("OS_AUTH_URL"):
                context.use_site(site)
            if project := os.environ.get("OS_PROJECT_NAME"):
                context.set("project_name", project)
            self.project_id: str = context.session().get_project_id()

    def lease(self, name: str) -> Resource | None:
        """The newest lease of that name that has not ended."""
        with _told("looking for the lease"):
            leases = [lease for lease in self._clients.blazar().lease.list() if lease["name"] == name and lease["status"] not in ("TERMINATED", "DELETING")]
        return max(leases, key=lambda lease: str(lease.get("created_at"))) if leases else None

    def create_lease(self, name: str, *, node_type: str, days: int) -> Resource:
        start = datetime.now(UTC) + timedelta(seconds=70)  # Blazar takes no time that is past when it looks
        reservation = {
            "resource_type": "physical:host",
            "resource_properties": json.dumps(["==", "$node_type", node_type]),
            "hypervisor_properties": "",
            "min": 1,
            "max": 1,
        }
        end = start + timedelta(days=days)
        with _told(
            f"leasing a node of type {node_type}", hint="Look at the site's calendar of hosts for another time or --node-type, or ask for a larger quota."
        ):
            return dict(
                self._clients.blazar().lease.create(
                    name=name, start=start.strftime(_TIME), end=end.strftime(_TIME), reservations=[reservation], events=[], before_end=None
                )
            )

    def delete_lease(self, lease_id: str) -> bool:
        """Whether it was there."""
        return self._delete(lambda: self._clients.blazar().lease.delete(lease_id), "ending the lease")

    def server(self, name: str) -> Resource | None:
        with _told("looking for the server"):
            servers = [server.to_dict() for server in self._clients.nova().servers.list(search_opts={"name": f"^{name}$"}) if server.name == name]
        return servers[0] if servers else None

    def create_server(self, name: str, *, reservation: str, image: str, key_name: str, network: str) -> Resource:
        with _told(f"starting a server with the image {image}"):
            nova, neutron = self._clients.nova(), self._clients.neutron()
            images = list(self._clients.glance().images.list(filters={"name": image}))
            networks = neutron.list_networks(name=network)["networks"]
            flavors = [flavor for flavor in nova.flavors.list() if flavor.name == FLAVOR]
            for found, what, hint in (
                (images, f"image {image!r}", "--image takes the name of an image of this site."),
                (networks, f"network {network!r}", "--network takes the name of a network of this project."),
                (flavors, f"flavor {FLAVOR!r}", "Is this a bare-metal site (CHI@TACC, CHI@UC)?"),
            ):
                if not found:
                    raise CloudError(f"{self.site} has no {what}.", hint=hint)
            server = nova.servers.create(
                name=name,
                image=images[0].id,
                flavor=flavors[0].id,
                key_name=key_name,
                nics=[{"net-id": networks[0]["id"]}],
                scheduler_hints={"reservation": reservation},
            )
            return dict(nova.servers.get(server.id).to_dict())

    def delete_server(self, server_id: str) -> bool:
        return self._delete(lambda: self._clients.nova().servers.delete(server_id), "deleting the server")

    def has_key(self, name: str) -> bool:
        with _told("looking for the key pair"):
            return any(pair.name == name for pair in self._clients.nova().keypairs.list())

    def create_key(self, name: str, public_key: str) -> None:
        with _told("registering the key pair"):
            self._clients.nova().keypairs.create(name, public_key=public_key)

    def delete_key(self, name: str) -> bool:
        return self._delete(lambda: self._clients.nova().keypairs.delete(name), "deleting the key pair")

    def address_of(self, server_id: str) -> Resource | None:
        """The floating address that leads to the server."""
        with _told("looking for the address"):
            neutron = self._clients.neutron()
            ports = {port["id"] for port in neutron.list_ports(device_id=server_id)["ports"]}
            return next((dict(a) for a in neutron.list_floatingips()["floatingips"] if a["port_id"] in ports), None)

    def free_address(self) -> Resource | None:
        """One of the project's that leads nowhere."""
        with _told("looking for a free address"):
            return next((dict(a) for a in self._clients.neutron().list_floatingips()["floatingips"] if not a["port_id"]), None)

    def allocate_address(self) -> Resource:
        with _told("allocating a floating address", hint="Give one back that nobody uses, or ask for a larger quota."):
            neutron = self._clients.neutron()
            networks = neutron.list_networks(name=PUBLIC_NETWORK)["networks"]
            if not networks:
                raise CloudError(f"{self.site} has no network {PUBLIC_NETWORK!r}.", hint="Floating addresses come from there.")
            return dict(neutron.create_floatingip({"floatingip": {"floating_network_id": networks[0]["id"]}})["floatingip"])

    def attach_address(self, address_id: str, server_id: str) -> None:
        with _told("attaching the address"):
            neutron = self._clients.neutron()
            ports = neutron.list_ports(device_id=server_id)["ports"]
            if not ports:
                raise CloudError("The server has no network port yet.", hint="Give the same command again.")
            neutron.update_floatingip(address_id, {"floatingip": {"port_id": ports[0]["id"]}})

    def delete_address(self, address_id: str) -> bool:
        return self._delete(lambda: self._clients.neutron().delete_floatingip(address_id), "giving back the address")

    def _delete(self, call: Callable[[], Any], what: str) -> bool:
        try:
            with _quiet():
                call()
        except Exception as error:
            if _status(error) == 404:
                return False
            raise _explained(error, what, None) from error
        return True


@contextmanager
def _told(what: str, *, hint: str | None = None) -> Iterator[None]:
    """The many error classes of the clients as one. What they print goes to the log."""
    try:
        with _quiet():
            yield
    except (CloudError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _explained(error, what, hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield
    if printed.getvalue().strip():
        log.debug("python-chi: %s", printed.getvalue().strip())


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of any of the clients."""
    for value in (
        (getattr(error, "kwargs", {}) or {}).get("code"),
        getattr(error, "http_status", None),
        getattr(error, "status_code", None),
        getattr(error, "code", None),
    ):
        if isinstance(value, int) and value >= 400:
            return value
    return None


def _explained(error: Exception, what: str, hint: str | None) -> CloudError:
    said, status = " ".join(str(error).split())[:300] or type(error).__name__, _status(error)
    if status in (401, 403) or "Unauthorized" in type(error).__name__ or "requires authentication" in said:
        hint = _CREDENTIALS if status != 403 else hint or "Your credential may not do this: ask the project's owner."
    return CloudError(f"Chameleon refuses {what}: {said}.", hint=hint or "Give the same command again: it goes on where it stopped.")

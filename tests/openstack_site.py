"""A site of an OpenStack cloud on loopback: as much of Keystone, Blazar, Nova, Glance and Neutron as a lease, a server and an address need.

The shapes of the answers are those of the services' API references. ``faults`` make it refuse, or take its time.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, Any] | None]
SECRET = "an-application-credential-secret"
SERVICES = {"identity": "", "compute": "/compute/v2.1", "network": "/network", "image": "/image", "reservation": "/reservation/v1"}


class Site:
    """``leases``, ``servers``, ``addresses``, ``keys``: what there is, by id. ``asked``: (method, path) of every request that changes something."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.addresses: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.images, self.networks = ["CC-Ubuntu24.04-hwe"], ["sharednet1", "public"]
        self.asked: list[tuple[str, str]] = []
        self.faults: dict[str, Any] = {}
        """no_nodes, no_quota, no_address, server_error: True; pending: how often a lease is looked at before it starts; wrong_secret."""
        self.floating_ip = "127.0.0.1"
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def _respond(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}") if length else {}
                status, content = site.answer(self.command, self.path, body, self.headers.get("X-Auth-Token"))
                data = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                if self.path.endswith("/auth/tokens"):
                    self.send_header("X-Subject-Token", "a-token")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _respond  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, secret: str = SECRET) -> dict[str, str]:
        return {
            "OS_AUTH_URL": f"{self.url}/v3",
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": "an-id",
            "OS_APPLICATION_CREDENTIAL_SECRET": secret,
            "OS_REGION_NAME": "CHI@TACC",
        }

    def add_lease(self, name: str, status: str = "ACTIVE") -> str:
        identity = str(uuid.uuid4())
        reservation = {"id": f"reservation-{identity}", "resource_type": "physical:host", "status": status.lower(), "min": 1, "max": 1}
        dates = {"start_date": "2026-01-01T10:00:00.000000", "end_date": "2026-01-02T10:00:00.000000", "created_at": f"2026-01-01 09:00:{len(self.leases):02d}"}
        self.leases[identity] = {"id": identity, "name": name, "status": status, "reservations": [reservation], "events": [], **dates}
        return identity

    def add_address(self, port: str | None = None) -> str:
        identity = str(uuid.uuid4())
        self.addresses[identity] = {"id": identity, "floating_ip_address": self.floating_ip, "port_id": port, "floating_network_id": "network-public"}
        return identity

    def answer(self, method: str, url: str, body: dict[str, Any], token: str | None) -> Answer:
        path, query = urlsplit(url).path, {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        if path.startswith("/v3") or path == "/":
            return self._keystone(method, path, body)
        if (version := self._version(path)) is not None:
            return 200, version
        if token != "a-token":
            return 401, {"error": {"code": 401, "message": "The request you have made requires authentication.", "title": "Unauthorized"}}
        if method != "GET":
            self.asked.append((method, path))
        for pattern, handle in self._routes().items():
            wanted, _, expression = pattern.partition(" ")
            if wanted == method and (match := re.fullmatch(expression, path)):
                return handle(*match.groups(), body, query)
        return 404, {"itemNotFound": {"code": 404, "message": f"no {method} {path} here"}}

    def _version(self, path: str) -> dict[str, Any] | None:
        """What clients ask a service first."""
        if path.rstrip("/") in ("/compute", "/compute/v2.1"):
            links = [{"rel": "self", "href": f"{self.url}/compute/v2.1/"}]
            version = {"id": "v2.1", "status": "CURRENT", "version": "2.90", "min_version": "2.1", "links": links}
            return {"version": version} if path.rstrip("/").endswith("v2.1") else {"versions": [version]}
        if path.rstrip("/") == "/network":
            return {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": f"{self.url}/network/v2.0/"}]}]}
        if path.rstrip("/") in ("/image", "/image/versions"):
            return {"versions": [{"id": "v2.9", "status": "CURRENT", "links": [{"rel": "self", "href": f"{self.url}/image/v2/"}]}]}
        return None

    def _keystone(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        links = [{"rel": "self", "href": f"{self.url}/v3/"}]
        if method == "GET":
            version = {"id": "v3.14", "status": "stable", "links": links, "media-types": []}
            return 200, {"version": version} if path.startswith("/v3") else {"versions": {"values": [version]}}
        if body["auth"]["identity"]["application_credential"]["secret"] != SECRET:
            return 401, {"error": {"code": 401, "message": "The request you have made requires authentication.", "title": "Unauthorized"}}
        catalog = [
            {
                "type": kind,
                "name": kind,
                "id": kind,
                "endpoints": [{"id": kind, "interface": "public", "region": "CHI@TACC", "region_id": "CHI@TACC", "url": self.url + (path or "/v3")}],
            }
            for kind, path in SERVICES.items()
        ]
        project = {"id": "a-project", "name": "CHI-1", "domain": {"id": "default", "name": "Default"}}
        user = {"id": "a-user", "name": "user", "domain": {"id": "default", "name": "Default"}, "password_expires_at": None}
        times = {"issued_at": "2026-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z"}
        return 201, {
            "token": {"methods": ["application_credential"], "user": user, "project": project, "catalog": catalog, "roles": [], "audit_ids": ["x"], **times}
        }

    def _routes(self) -> dict[str, Callable[..., Answer]]:
        return {
            "GET /reservation/v1/leases": lambda body, query: (200, {"leases": [self._looked_at(lease) for lease in self.leases.values()]}),
            "POST /reservation/v1/leases": self._create_lease,
            "DELETE /reservation/v1/leases/([^/]+)": lambda identity, body, query: self._delete(self.leases, identity),
            "GET /compute/v2.1/servers/detail": lambda body, query: (200, {"servers": list(self.servers.values())}),
            "GET /compute/v2.1/servers/([^/]+)": lambda identity, body, query: (200, {"server": self._started(self.servers[identity])}),
            "POST /compute/v2.1/servers": self._create_server,
            "DELETE /compute/v2.1/servers/([^/]+)": lambda identity, body, query: self._delete(self.servers, identity),
            "GET /compute/v2.1/flavors/detail": lambda body, query: (200, {"flavors": [{"id": "flavor-1", "name": "baremetal", "links": []}]}),
            "GET /compute/v2.1/os-keypairs": lambda body, query: (200, {"keypairs": [{"keypair": {"name": name}} for name in self.keys]}),
            "POST /compute/v2.1/os-keypairs": self._create_key,
            "DELETE /compute/v2.1/os-keypairs/([^/]+)": lambda name, body, query: self._delete(self.keys, name),
            "GET /image/v2/schemas/image": lambda body, query: (200, {"name": "image", "properties": {}, "additionalProperties": {}, "links": []}),
            "GET /image/v2/images": lambda body, query: (200, {"images": [self._image(n) for n in self.images if query.get("name") in (None, n)]}),
            "GET /network/v2.0/networks": lambda body, query: (
                200,
                {"networks": [{"id": f"network-{n}", "name": n} for n in self.networks if query.get("name") in (None, n)]},
            ),
            "GET /network/v2.0/ports": lambda body, query: (200, {"ports": [{"id": f"port-{query['device_id']}", "device_id": query["device_id"]}]}),
            "GET /network/v2.0/floatingips": lambda body, query: (200, {"floatingips": list(self.addresses.values())}),
            "POST /network/v2.0/floatingips": self._create_address,
            "PUT /network/v2.0/floatingips/([^/]+)": self._attach_address,
            "DELETE /network/v2.0/floatingips/([^/]+)": lambda identity, body, query: self._delete(self.addresses, identity),
        }

    def _looked_at(self, lease: dict[str, Any]) -> dict[str, Any]:
        if lease["status"] == "PENDING":
            self.faults["pending"] = self.faults.get("pending", 1) - 1
            if self.faults["pending"] <= 0:
                lease["status"] = "ACTIVE"
        return lease

    def _create_lease(self, body: dict[str, Any], query: dict[str, str]) -> Answer:
        if self.faults.get("no_nodes"):
            return 400, {"error_code": 400, "error_message": "Not enough hosts available", "error_name": 400}
        if self.faults.get("no_quota"):
            return 403, {"error_code": 403, "error_message": "Reservation for project would spend more SUs than it has", "error_name": 403}
        assert json.loads(body["reservations"][0]["resource_properties"])[:2] == ["==", "$node_type"]
        return 201, {"lease": self.leases[self.add_lease(body["name"], "PENDING")]}

    def _create_server(self, body: dict[str, Any], query: dict[str, str]) -> Answer:
        wanted, hints = body["server"], body["os:scheduler_hints"]
        assert any(hints["reservation"] == r["id"] for lease in self.leases.values() for r in lease["reservations"])
        assert wanted["key_name"] in self.keys
        identity = str(uuid.uuid4())
        self.servers[identity] = {"id": identity, "name": wanted["name"], "status": "BUILD", "addresses": {}, "links": [], "flavor": {}}
        return 202, {"server": {"id": identity, "links": [], "adminPass": "x"}}

    def _started(self, server: dict[str, Any]) -> dict[str, Any]:
        before = dict(server)
        if self.faults.get("server_error"):
            server |= {"status": "ERROR", "fault": {"code": 500, "message": "No valid host was found."}}
        elif server["status"] == "BUILD":
            server["status"] = "ACTIVE"
        return before

    def _create_key(self, body: dict[str, Any], query: dict[str, str]) -> Answer:
        self.keys[body["keypair"]["name"]] = body["keypair"]["public_key"]
        return 200, {"keypair": {"name": body["keypair"]["name"], "public_key": body["keypair"]["public_key"], "fingerprint": "x", "user_id": "a-user"}}

    def _create_address(self, body: dict[str, Any], query: dict[str, str]) -> Answer:
        if self.faults.get("no_address"):
            return 409, {"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['floatingip'].", "detail": ""}}
        return 201, {"floatingip": self.addresses[self.add_address()]}

    def _attach_address(self, identity: str, body: dict[str, Any], query: dict[str, str]) -> Answer:
        self.addresses[identity] |= body["floatingip"]
        return 200, {"floatingip": self.addresses[identity]}

    @staticmethod
    def _image(name: str) -> dict[str, Any]:
        return {"id": f"image-{name}", "name": name, "status": "active", "created_at": "2026-01-01T00:00:00Z", "build-repo": ""}

    @staticmethod
    def _delete(things: dict[str, Any], identity: str) -> Answer:
        if things.pop(identity, None) is None:
            return 404, {"itemNotFound": {"code": 404, "message": f"{identity} could not be found."}}
        return 204, None

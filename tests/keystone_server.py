"""A real Keystone (v3) on loopback, and a second front door to a real Swift that lets in who has a token of it: application credentials as clouds give them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.openstack_programs import openstack_programs
from tests.ports import free_ports

from scanvit.storage.processes import end

REGION = "RegionOne"
_ADMIN, _SERVICE = "admin-of-the-test", "service-of-the-test"
_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "copy", "slo", "dlo", "proxy-logging")

_KEYSTONE = """
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
"""

# Keystone reads the command line of whoever serves it.
_APPLICATION = """
import sys
sys.argv = ["keystone", "--config-file", "{folder}/keystone.conf"]
from keystone.server.wsgi import initialize_public_application
application = initialize_public_application()
"""

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {swift}/etc
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk authtoken keystoneauth copy slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {keystone}/v3
auth_url = {keystone}/v3
auth_type = password
cache = swift.cache
username = swift
password = {password}
user_domain_id = default
project_name = admin
project_domain_id = default
delay_auth_decision = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = {memcached}
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = member
"""


class KeystoneServer:
    """``swift``: the folder of an object store that objstore.sh has started; its three storage servers are shared."""

    def __init__(self, swift: Path, folder: Path) -> None:
        self.swift, self.folder, self.programs = swift, folder, openstack_programs() / "bin"
        first = free_ports(2)
        self.port, self.proxy_port = first, first + 1
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.token = ""

    def start(self) -> None:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        self._write("keystone.conf", _KEYSTONE.format(folder=self.folder))
        self._write("keystone_application.py", _APPLICATION.format(folder=self.folder))
        filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n" for name in _FILTERS)
        memcached = f"127.0.0.1:{int((self.swift / 'port').read_text()) + 4}"
        proxy = _PROXY.format(port=self.proxy_port, user=user, swift=self.swift, keystone=self.url, password=_SERVICE, memcached=memcached)
        self._write("proxy-server.conf", proxy + filters)
        for folder in ("fernet", "credential"):
            (self.folder / folder).mkdir(mode=0o700)
        owner = ["--keystone-user", user, "--keystone-group", str(os.getegid())]
        self._manage("db_sync")
        self._manage("fernet_setup", *owner)
        self._manage("credential_setup", *owner)
        address = f"{self.url}/v3"
        addresses = ("--bootstrap-public-url", address, "--bootstrap-internal-url", address, "--bootstrap-region-id", REGION)
        self._manage("bootstrap", "--bootstrap-password", _ADMIN, *addresses)
        self._run("gunicorn", "--bind", f"127.0.0.1:{self.port}", "--workers", "1", "--threads", "4", "keystone_application:application")
        self._wait(f"{self.url}/v3")
        self._populate()
        self._run("swift-proxy-server", str(self.folder / "proxy-server.conf"), "-v")
        self._wait(f"http://127.0.0.1:{self.proxy_port}/healthcheck")

    def close(self) -> None:
        for process in self.processes:
            end(process)

    def credential(self, name: str, *, roles: tuple[str, ...] = ("member",)) -> dict[str, str]:
        """The variables that a cloud's dashboard writes for a new application credential of a new user with these roles."""
        user = self._user(name, f"password-of-{name}")
        for role in roles:
            self._grant(user, role)
        token, identity = self._authenticate(name, f"password-of-{name}")
        body = {"application_credential": {"name": f"scans-of-{name}", "roles": [{"name": role} for role in roles]}}
        made = self._ask("POST", f"/users/{identity}/application_credentials", body, token=token)[1]["application_credential"]
        return {
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_AUTH_URL": f"{self.url}/v3",
            "OS_IDENTITY_API_VERSION": "3",
            "OS_REGION_NAME": REGION,
            "OS_INTERFACE": "public",
            "OS_APPLICATION_CREDENTIAL_ID": made["id"],
            "OS_APPLICATION_CREDENTIAL_SECRET": made["secret"],
        }

    def _populate(self) -> None:
        self.token, _ = self._authenticate("admin", _ADMIN)
        self.project = self._ask("GET", "/projects?name=admin")[1]["projects"][0]["id"]
        self.roles = {role["name"]: role["id"] for role in self._ask("GET", "/roles")[1]["roles"]}
        self._grant(self._user("swift", _SERVICE), "admin")
        service = self._ask("POST", "/services", {"service": {"type": "object-store", "name": "swift"}})[1]["service"]["id"]
        for interface in ("public", "internal"):
            url = f"http://127.0.0.1:{self.proxy_port}/v1/AUTH_$(project_id)s"
            self._ask("POST", "/endpoints", {"endpoint": {"service_id": service, "interface": interface, "region_id": REGION, "url": url}})

    def _user(self, name: str, password: str) -> str:
        body = {"user": {"name": name, "password": password, "domain_id": "default", "default_project_id": self.project}}
        return str(self._ask("POST", "/users", body)[1]["user"]["id"])

    def _grant(self, user: str, role: str) -> None:
        self._ask("PUT", f"/projects/{self.project}/users/{user}/roles/{self.roles[role]}")

    def _authenticate(self, name: str, password: str) -> tuple[str, str]:
        """(token, user's id), for the project called admin."""
        user = {"name": name, "password": password, "domain": {"id": "default"}}
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
        token, answer = self._ask("POST", "/auth/tokens", body, token="")
        return token, answer["token"]["user"]["id"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None) -> tuple[str, dict[str, Any]]:
        headers = {"X-Auth-Token": self.token if token is None else token, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.url}/v3{path}", data=data, method=method, headers=headers), timeout=30) as answer:
            return answer.headers.get("X-Subject-Token", ""), json.loads(answer.read() or b"{}")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def _manage(self, *arguments: str) -> None:
        command = [self.programs / "keystone-manage", "--config-file", self.folder / "keystone.conf", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def _run(self, program: str, *arguments: str) -> None:
        with open(self.folder / f"{program}.log", "wb") as log:
            process = subprocess.Popen([self.programs / program, *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)

    def _wait(self, url: str) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.processes[-1].poll() is None:
            with suppress(URLError, OSError), urlopen(url, timeout=2):
                return
            time.sleep(0.1)
        logs = [path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log")]
        raise AssertionError(f"{url} does not answer\n" + "\n".join(logs))

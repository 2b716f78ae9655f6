"""The settings of a platform: ``.env`` in its folder, generated once, read by everything. One line a variable, ``NAME=VALUE``.

A value has no blanks, quotes, ``$``, ``#`` or backslash, so that this module, a shell and docker compose read the very same.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import psutil

from ..core.errors import ConfigError, PlatformStateError
from ..core.loading import read_text
from ..storage.atomic import storage_errors, write_text
from .state import exclusive
from .variables import LOOPBACK, OPTIONAL, VARIABLES

FILE_NAME = ".env"
CLIENT_FILE_NAME = "client.env"
DEFAULT_FOLDER = ".scanvit-platform"
ACCELERATORS = ("cpu", "cuda", "rocm")
# Addresses and keys of a store that the user has already. Taken together or not at all: keys alone may be of another store.
STORE_VARIABLES = ("STORE_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "MLFLOW_BUCKET", "RAY_BUCKET")
_HEAD = "# Made by scanvit platform init."
# What a folder may hold before its .env: of an init that was interrupted, and the records of machines elsewhere.
_BEFORE = ("lock", ".gitignore", CLIENT_FILE_NAME, ".*.tmp", "chameleon-*.json")
_SAFE = re.compile(r"[A-Za-z0-9_.:/@%+,*=\-\[\]]*")
_MIN_PASSWORD = 12  # MLflow refuses shorter ones


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``values`` has every variable of VARIABLES, each fit for what it is."""

    folder: Path
    values: Mapping[str, str] = field(repr=False)

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def port(self, name: str) -> int:
        return int(self.values[name])

    @property
    def bind(self) -> str:
        return self.values["SCANVIT_BIND"]

    @property
    def host(self) -> str:
        """The address at which this machine reaches what listens on ``bind``."""
        return LOOPBACK if self.bind == "0.0.0.0" else self.bind  # noqa: S104 - compared, not bound

    @property
    def store_url(self) -> str:
        return self.values["STORE_ENDPOINT_URL"] or f"http://{self.host}:{self.port('STORE_PORT')}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.port('MLFLOW_PORT')}"

    def secrets(self) -> list[str]:
        return [self.values[name] for name, variable in VARIABLES.items() if variable.kind == "secret"]

    def redact(self, text: str) -> str:
        for secret in self.secrets():
            text = text.replace(secret, "***")
        return text

    def store_environment(self) -> dict[str, str]:
        """What an S3 client needs."""
        keys = {name: self.values[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
        endpoints = {"AWS_ENDPOINT_URL": self.store_url, "MLFLOW_S3_ENDPOINT_URL": self.store_url}
        return keys | endpoints | {"AWS_DEFAULT_REGION": self.values["AWS_REGION"], "AWS_EC2_METADATA_DISABLED": "true"}

    def client_environment(self) -> dict[str, str]:
        """What a user of the platform needs, and no secret that only its servers need."""
        tracking = {"MLFLOW_TRACKING_URI": self.mlflow_url} | {n: self.values[n] for n in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
        ray = {
            "RAY_API_SERVER_ADDRESS": f"http://{self.host}:{self.port('RAY_DASHBOARD_PORT')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.values["RAY_AUTH_TOKEN"],
        }
        return tracking | self.store_environment() | ray


def init(folder: Path, environment: Mapping[str, str], *, bind: str | None = None, accelerator: str | None = None) -> tuple[Settings, tuple[str, ...]]:
    """Settings for a new platform, and the names of the variables that were written.

    A complete folder is left as it is. A half-finished one is completed: what it has stays, what it lacks is added. ``environment`` may
    name an object store to use (STORE_VARIABLES), and DATA_PATH. Raises ConfigError, StorageError, and PlatformStateError for a folder of something else
    and for another ``bind`` or ``accelerator`` than it has.
    """
    _refuse_foreign(folder)
    with storage_errors(folder):
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o711)  # where root runs the platform, PostgreSQL's user has to pass
    with exclusive(folder):
        path = folder / FILE_NAME
        there = _parse(read_text(path, error=PlatformStateError), path) if path.exists() else {}
        given = {"SCANVIT_BIND": bind, "SCANVIT_ACCELERATOR": accelerator}
        _refuse_change(folder, there, given)
        wanted = {name: value for name, value in (given | {"DATA_PATH": environment.get("DATA_PATH")}).items() if value and name not in there}
        if environment.get("STORE_ENDPOINT_URL"):
            wanted |= {name: environment[name] for name in STORE_VARIABLES if environment.get(name) and name not in there}
        values = {name: there.get(name) or wanted.get(name) or variable.default() for name, variable in VARIABLES.items()}
        values["COMPOSE_PROJECT_NAME"] = there.get("COMPOSE_PROJECT_NAME") or project_name(folder)
        values["MLFLOW_ALLOWED_HOSTS"] = there.get("MLFLOW_ALLOWED_HOSTS") or allowed_hosts(values["SCANVIT_BIND"])
        settings = _checked(folder, there | values)
        added = tuple(name for name in VARIABLES if name not in there)
        if added:
            if not (folder / ".gitignore").exists():
                write_text(folder / ".gitignore", "*\n")
            _write(settings)
    return settings, added


def project_name(folder: Path) -> str:
    """By which compose tells the containers and volumes of this platform from those of others on the machine."""
    return f"scanvit-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _refuse_foreign(folder: Path) -> None:
    """``down --volumes`` deletes below the folder: it must be the platform's own. Raises PlatformStateError."""
    path = folder / FILE_NAME
    hint = "Give a new folder, or an empty one: scanvit platform init DIR"
    if path.is_file():
        text = read_text(path, error=PlatformStateError)
        if not (text.startswith(_HEAD) or re.search(r"^SCANVIT_", text, re.MULTILINE)):
            raise PlatformStateError(
                f"{path} is not of scanvit: it does not begin with {_HEAD!r}, and has no variable SCANVIT_*.",
                hint=f"{hint}. If it is this platform's after all, put that line at its head.",
            )
    elif folder.is_dir():
        with storage_errors(folder):
            names = sorted(entry.name for entry in folder.iterdir())
        if foreign := [name for name in names if not any(fnmatch(name, known) for known in _BEFORE)]:
            raise PlatformStateError(f"{folder} holds {foreign[0]!r} and no {FILE_NAME}: it is the folder of something else.", hint=hint)


def _refuse_change(folder: Path, there: Mapping[str, str], given: Mapping[str, str | None]) -> None:
    options = {"SCANVIT_BIND": "--bind", "SCANVIT_ACCELERATOR": "--accelerator"}
    for name, value in given.items():
        if value and there.get(name, value) != value:
            hint = f"Change it: scanvit platform up --dir {folder} {options[name]} {value}"
            raise PlatformStateError(f"{folder} has {name}={there[name]} already, not {value}.", hint=hint)


def load(folder: Path) -> Settings:
    """Raises PlatformStateError where there is none or it is half-finished, ConfigError for a value that cannot be."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise PlatformStateError(f"{folder} is no platform: it has no {FILE_NAME}.", hint=f"Make one: scanvit platform init {folder}")
    values = _parse(read_text(path, error=PlatformStateError), path)
    if missing := [name for name in VARIABLES if name not in values]:
        _refuse_foreign(folder)
        raise PlatformStateError(
            f"{path} is half-finished, or of an older scanvit: it lacks {', '.join(missing)}.",
            hint=f"scanvit platform init {folder} completes it and keeps what it has.",
        )
    return _checked(folder, values)


def rebind(settings: Settings, *, bind: str | None, accelerator: str | None) -> Settings:
    """The same with another address or accelerator. Raises ConfigError."""
    changed = {"SCANVIT_BIND": bind or settings.bind, "SCANVIT_ACCELERATOR": accelerator or settings["SCANVIT_ACCELERATOR"]}
    if bind and bind != settings.bind:
        hosts = dict.fromkeys([*settings["MLFLOW_ALLOWED_HOSTS"].split(","), *allowed_hosts(bind).split(",")])
        changed["MLFLOW_ALLOWED_HOSTS"] = ",".join(hosts)
    return _checked(settings.folder, {**settings.values, **changed})


def write(settings: Settings) -> None:
    """``.env`` where it differs, and ``client.env``, which may be of before a change in ``.env``."""
    if load(settings.folder).values == settings.values:
        _write_client(settings)
    else:
        _write(settings)


def allowed_hosts(bind: str) -> str:
    """By which Host headers MLflow may be called: a page of another site that has itself resolved to this machine (DNS rebinding) is refused."""
    names = ["localhost", LOOPBACK, "mlflow"]
    if bind == "0.0.0.0":  # noqa: S104 - compared, not bound
        addresses = (address for interface in psutil.net_if_addrs().values() for address in interface)
        names += [socket.gethostname(), socket.getfqdn(), *(a.address for a in addresses if a.family == socket.AF_INET)]
    elif bind != LOOPBACK:
        names.append(bind)
    return ",".join(f"{name},{name}:*" for name in dict.fromkeys(names))


def _write(settings: Settings) -> None:
    lines = [f"{_HEAD} Holds secrets: keep it private, and out of any repository."]
    for name, value in settings.values.items():
        about = VARIABLES[name].about if name in VARIABLES else ""
        lines += ([f"# {about or OPTIONAL[name]}"] if about or name in OPTIONAL else []) + [f"{name}={value}"]
    lines += ["", "# Not set: remove the # to change what the files of containers take by default."]
    lines += [line for name, about in OPTIONAL.items() if name not in settings.values for line in (f"# {about}", f"# {name}=")]
    _write_client(settings)
    _write_private(settings.folder / FILE_NAME, lines)  # last: with it, the folder is complete


def _write_client(settings: Settings) -> None:
    lines = [f"export {name}={value}" for name, value in settings.client_environment().items()]
    _write_private(settings.folder / CLIENT_FILE_NAME, lines)


def _write_private(path: Path, lines: list[str]) -> None:
    """For the folder's owner, also where root starts the platform."""
    write_text(path, "\n".join(lines) + "\n", private=True)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _parse(text: str, path: Path) -> dict[str, str]:
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ConfigError(f"{path}, line {number}, is not of the form NAME=VALUE.", hint="Mend or remove the line.")
        if not _SAFE.fullmatch(value):
            raise ConfigError(
                f"{path}, line {number}: {name} has a blank, a quote or another character that not every reader takes alike.",
                hint="Use letters, digits and _ . : / @ % + , * = - alone, without quotes.",
            )
        values[name] = value
    return values


def _checked(folder: Path, values: Mapping[str, str]) -> Settings:
    path = folder / FILE_NAME
    taken: dict[int, str] = {}
    for name, variable in VARIABLES.items():
        value = values[name]
        if not _SAFE.fullmatch(value):
            raise ConfigError(f"{name} is {value!r}, which not every reader of {path} takes alike.", hint="Use letters, digits and _ . : / @ - alone.")
        if not value and variable.kind != "optional":
            raise ConfigError(f"{name} is empty in {path}.", hint="Give it a value, or remove the line and run: scanvit platform init")
        if variable.kind == "port":
            number = int(value) if value.isdecimal() and len(value) < 6 else 0
            if not 0 < number < 65536:
                raise ConfigError(f"{name} is {value!r}, which is no port.", hint=f"Choose a number from 1024 to 65535 in {path}.")
            if other := taken.get(number):
                raise ConfigError(f"{other} and {name} are both {number}.", hint=f"Give each its own port in {path}.")
            taken[number] = name
    _check_words(path, values)
    return Settings(folder=folder, values=values)


def _check_words(path: Path, values: Mapping[str, str]) -> None:
    if values["SCANVIT_ACCELERATOR"] not in ACCELERATORS:
        raise ConfigError(f"SCANVIT_ACCELERATOR is {values['SCANVIT_ACCELERATOR']!r}.", hint=f"Choose one of {', '.join(ACCELERATORS)}.")
    try:
        ipaddress.IPv4Address(values["SCANVIT_BIND"])
    except ValueError:
        raise ConfigError(
            f"{values['SCANVIT_BIND']!r} is no IPv4 address to listen on.", hint="Give one of this machine: 127.0.0.1, or 0.0.0.0 for all."
        ) from None
    if len(values["MLFLOW_TRACKING_PASSWORD"]) < _MIN_PASSWORD:
        raise ConfigError(f"MLFLOW_TRACKING_PASSWORD in {path} is shorter than {_MIN_PASSWORD} characters.", hint="MLflow refuses it: choose a longer one.")
    for name in ("POSTGRES_USER", "POSTGRES_DB"):
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", values[name]):
            raise ConfigError(f"{name} is {values[name]!r}.", hint="Use small letters, digits and underscores, beginning with a letter.")
    if not values["DATA_PATH"].startswith("/"):
        raise ConfigError(f"DATA_PATH is {values['DATA_PATH']!r}: from where, differs by who reads it.", hint="Give the whole path, beginning with /.")
    url = values["STORE_ENDPOINT_URL"]
    if url and not re.fullmatch(r"https?://[^/@?#]+/?", url):
        raise ConfigError("STORE_ENDPOINT_URL is not of the form http(s)://HOST[:PORT].", hint="Keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")

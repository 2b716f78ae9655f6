"""The settings of a platform: ``.env`` in its folder, generated once, read by everything. One line a variable, ``NAME=VALUE``.

A value has no blanks, quotes, ``$``, ``#`` or backslash, so that this module, a shell and docker compose read the very same.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from ..core.errors import ConfigError, PlatformStateError
from ..core.loading import read_text
from ..storage.atomic import storage_errors, write_text
from .state import exclusive

FILE_NAME = ".env"
CLIENT_FILE_NAME = "client.env"
DEFAULT_FOLDER = ".scanvit-platform"
LOOPBACK = "127.0.0.1"
ACCELERATORS = ("cpu", "cuda", "rocm")
# Addresses and keys of a store that the user has already. Taken together or not at all: keys alone may be of another store.
STORE_VARIABLES = ("STORE_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "MLFLOW_BUCKET", "RAY_BUCKET")
_SAFE = re.compile(r"[A-Za-z0-9_.:/@%+,*=\-\[\]]*")
_MIN_PASSWORD = 12  # MLflow refuses shorter ones


@dataclass(frozen=True, kw_only=True)
class Variable:
    kind: Literal["name", "port", "secret", "address", "optional"]
    default: Callable[[], str]
    about: str = ""


def _fixed(value: str) -> Callable[[], str]:
    return lambda: value


def _name(value: str, about: str = "") -> Variable:
    return Variable(kind="name", default=_fixed(value), about=about)


def _port(number: int) -> Variable:
    return Variable(kind="port", default=_fixed(str(number)))


def _secret(about: str = "") -> Variable:
    return Variable(kind="secret", default=lambda: secrets.token_hex(16), about=about)


VARIABLES: dict[str, Variable] = {
    "COMPOSE_PROJECT_NAME": _name("scanvit"),
    "SCANVIT_BIND": Variable(kind="address", default=_fixed(LOOPBACK), about="Where the services listen. Loopback: this machine alone can reach them."),
    "SCANVIT_ACCELERATOR": _name("cpu", "cpu, cuda or rocm"),
    "DATA_PATH": _name("/mnt/object", "The images, read-only, in Ray and Jupyter"),
    "POSTGRES_USER": _name("mlflow"),
    "POSTGRES_DB": _name("mlflow"),
    "POSTGRES_PASSWORD": _secret(),
    "POSTGRES_PORT": _port(5432),
    "STORE_ENDPOINT_URL": Variable(kind="optional", default=_fixed(""), about="An S3 object store that runs elsewhere; empty: one is started here"),
    "AWS_ACCESS_KEY_ID": _name("scanvit:platform"),
    "AWS_SECRET_ACCESS_KEY": _secret(),
    "AWS_REGION": _name("us-east-1"),
    "STORE_PORT": _port(9000),
    "MLFLOW_BUCKET": _name("mlflow"),
    "RAY_BUCKET": _name("ray"),
    "MLFLOW_PORT": _port(8000),
    "MLFLOW_TRACKING_USERNAME": _name("admin"),
    "MLFLOW_TRACKING_PASSWORD": _secret("Change it here, then: scanvit platform up"),
    "MLFLOW_FLASK_SERVER_SECRET_KEY": _secret(),
    "MLFLOW_ALLOWED_HOSTS": _name("", "The names by which browsers and clients may call MLflow"),
    "RAY_PORT": _port(6379),
    "RAY_DASHBOARD_PORT": _port(8265),
    "RAY_CLIENT_PORT": _port(8889),
    "RAY_AUTH_TOKEN": _secret(),
    "PROMETHEUS_PORT": _port(9090),
    "RUN_METRICS_PORT": _port(9109),
    "GRAFANA_PORT": _port(3000),
    "GRAFANA_ADMIN_PASSWORD": _secret(),
    "JUPYTER_PORT": _port(8888),
    "JUPYTER_TOKEN": _secret(),
}

# Written into .env as comments: what the compose files take beside, each with a default of their own.
OPTIONAL = {
    "RUNS_PATH": "The folder of the runs that Prometheus follows; else ./runs, in containers those of the notebooks",
    "DATA_PROPAGATION": "rslave: a bucket that is mounted at DATA_PATH after the start is seen as well (containers on Linux with systemd)",
    "GPU_WORKER_1": "The card of Ray's first worker: its number (NVIDIA, 0), or its render node (AMD, /dev/dri/renderD128)",
    "GPU_WORKER_2": "The card of the second: 1, or /dev/dri/renderD129",
    "VIDEO_GID": "AMD: the number of the group video, from: getent group video",
    "RENDER_GID": "AMD: the number of the group render, from: getent group render",
    "RAY_WORKER_CPUS": "CPUs that each of Ray's workers offers; else all",
    "RAY_MEMORY": "Memory limit of each container of Ray (16g); JUPYTER_MEMORY likewise",
    "RAY_SHM_SIZE": "Shared memory of each container of Ray, which holds its objects (2gb)",
    "MLFLOW_WORKERS": "Processes of MLflow's server in containers (2)",
    "MLFLOW_DEFAULT_PERMISSION": "What an account of MLflow may do with runs of others: READ, EDIT, MANAGE or NO_PERMISSIONS (READ)",
    "PROMETHEUS_RETENTION": "How long Prometheus keeps its figures (30d)",
}


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
    name an object store to use (STORE_VARIABLES). Raises ConfigError, PlatformStateError, StorageError.
    """
    with storage_errors(folder):
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o711)  # where root runs the platform, PostgreSQL's user has to pass
    with exclusive(folder):
        path = folder / FILE_NAME
        there = _parse(read_text(path, error=PlatformStateError), path) if path.exists() else {}
        given = {"SCANVIT_BIND": bind, "SCANVIT_ACCELERATOR": accelerator}
        wanted = {name: value for name, value in given.items() if value and name not in there}
        if environment.get("STORE_ENDPOINT_URL"):
            wanted |= {name: environment[name] for name in STORE_VARIABLES if environment.get(name) and name not in there}
        values = {name: there.get(name) or wanted.get(name) or variable.default() for name, variable in VARIABLES.items()}
        values["MLFLOW_ALLOWED_HOSTS"] = there.get("MLFLOW_ALLOWED_HOSTS") or allowed_hosts(values["SCANVIT_BIND"])
        settings = _checked(folder, there | values)
        added = tuple(name for name in VARIABLES if name not in there)
        if added:
            write_text(folder / ".gitignore", "*\n")
            _write(settings)
    return settings, added


def load(folder: Path) -> Settings:
    """Raises PlatformStateError where there is none or it is half-finished, ConfigError for a value that cannot be."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise PlatformStateError(f"{folder} is no platform: it has no {FILE_NAME}.", hint=f"Make one: scanvit platform init {folder}")
    values = _parse(read_text(path, error=PlatformStateError), path)
    if missing := [name for name in VARIABLES if name not in values]:
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
    lines = ["# Made by scanvit platform init. Holds secrets: keep it private, and out of any repository."]
    for name, value in settings.values.items():
        about = VARIABLES[name].about if name in VARIABLES else ""
        lines += ([f"# {about or OPTIONAL[name]}"] if about or name in OPTIONAL else []) + [f"{name}={value}"]
    lines += ["", "# Not set: remove the # to change what the files of containers take by default."]
    lines += [line for name, about in OPTIONAL.items() if name not in settings.values for line in (f"# {about}", f"# {name}=")]
    _write_client(settings)
    write_text(settings.folder / FILE_NAME, "\n".join(lines) + "\n", private=True)  # last: with it, the folder is complete


def _write_client(settings: Settings) -> None:
    lines = [f"export {name}={value}" for name, value in settings.client_environment().items()]
    write_text(settings.folder / CLIENT_FILE_NAME, "\n".join(lines) + "\n", private=True)


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
    url = values["STORE_ENDPOINT_URL"]
    if url and not re.fullmatch(r"https?://[^/@?#]+/?", url):
        raise ConfigError("STORE_ENDPOINT_URL is not of the form http(s)://HOST[:PORT].", hint="Keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")

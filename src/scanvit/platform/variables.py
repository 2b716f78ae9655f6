"""What ``.env`` holds: every variable with its kind, its default and its meaning."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LOOPBACK = "127.0.0.1"


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
    "COMPOSE_PROJECT_NAME": _name("scanvit"),  # init derives one from the folder
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

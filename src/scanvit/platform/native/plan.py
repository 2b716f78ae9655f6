"""Without containers: which programs make up each profile, and what has to lie ready before they start."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ...storage.atomic import storage_errors, write_text
from .. import object_store, postgres
from ..services import services_of
from ..settings import Settings
from ..variables import LOOPBACK
from . import mlflow_server, ray_nodes
from .programs import Program, base_environment, find_program, needs

DATA = ("postgres", "postgres.unfinished", "store", "prometheus")
"""What is kept below ``data`` of the platform's folder."""


def programs(settings: Settings, profiles: Sequence[str]) -> list[Program]:
    """In the order in which they start. Raises EngineError for a program that is not installed."""
    names = {service.name for service in services_of(profiles, native=True)}
    planned: list[Program] = []
    if "postgres" in names:
        planned.append(postgres.program(settings))
    if "store" in names:
        planned += object_store.programs(settings)
    if "mlflow" in names:
        planned.append(mlflow_server.program(settings))
    if "ray-head" in names:
        planned += ray_nodes.programs(settings)
    if "jupyter" in names:
        planned.append(_jupyter(settings))
    if "prometheus" in names:
        planned += [_run_metrics(settings), _prometheus(settings)]
    return planned


def prepare(settings: Settings, profiles: Sequence[str]) -> None:
    """Folders, configuration, and PostgreSQL's and the store's data where there are none. Nothing that exists is touched."""
    names = {service.name for service in services_of(profiles, native=True)}
    with storage_errors(settings.folder):
        for name, mode in (("data", 0o711), ("run", 0o700), ("logs", 0o700)):
            (settings.folder / name).mkdir(exist_ok=True)
            (settings.folder / name).chmod(mode)
        if "postgres" in names:
            postgres.prepare(settings)
        if "store" in names:
            object_store.prepare(settings)
        if "mlflow" in names:
            mlflow_server.prepare(settings)
        if "ray-head" in names:
            ray_nodes.prepare(settings)
        if "jupyter" in names:
            needs("jupyterlab", extra="jupyter")
        if "prometheus" in names:
            (settings.folder / "data" / "prometheus").mkdir(exist_ok=True)
            write_text(settings.folder / "run" / "prometheus.yml", _prometheus_conf(settings))


def _jupyter(settings: Settings) -> Program:
    options = {"ip": settings.bind, "port": settings["JUPYTER_PORT"], "port_retries": "0", "root_dir": os.getcwd()}
    root = ["--allow-root"] if os.geteuid() == 0 else []
    return Program(
        name="jupyter",
        command=(sys.executable, "-m", "jupyterlab", "--no-browser", *root, *(f"--ServerApp.{name}={value}" for name, value in options.items())),
        environment=base_environment(settings.folder) | settings.client_environment() | {name: settings[name] for name in ("JUPYTER_TOKEN", "DATA_PATH")},
        host=settings.host,
        port=settings.port("JUPYTER_PORT"),
    )


def _run_metrics(settings: Settings) -> Program:
    """For Prometheus alone: on loopback, whatever the platform's address, since its page asks for no password."""
    runs = settings.values.get("RUNS_PATH") or os.path.join(os.getcwd(), "runs")
    return Program(
        name="run-metrics",
        command=(sys.executable, "-m", "scanvit", "track", "serve-metrics", runs, "--port", settings["RUN_METRICS_PORT"]),
        environment=base_environment(settings.folder),
        port=settings.port("RUN_METRICS_PORT"),
    )


def _prometheus(settings: Settings) -> Program:
    files = {"config.file": settings.folder / "run" / "prometheus.yml", "storage.tsdb.path": settings.folder / "data" / "prometheus"}
    return Program(
        name="prometheus",
        command=(
            find_program("prometheus", package="apt install prometheus"),
            *(f"--{name}={value}" for name, value in files.items()),
            f"--web.listen-address={settings.bind}:{settings['PROMETHEUS_PORT']}",
        ),
        environment=base_environment(settings.folder),
        host=settings.host,
        port=settings.port("PROMETHEUS_PORT"),
    )


def _prometheus_conf(settings: Settings) -> str:
    return f"""global:
  scrape_interval: 15s
scrape_configs:
  - job_name: prometheus
    static_configs:
      - targets: ["{settings.host}:{settings["PROMETHEUS_PORT"]}"]
  - job_name: scanvit
    scrape_interval: 5s
    scrape_timeout: 5s
    static_configs:
      - targets: ["{LOOPBACK}:{settings["RUN_METRICS_PORT"]}"]
  - job_name: ray
    file_sd_configs:
      - files: ["{ray_nodes.session_folder(settings)}/prom_metrics_service_discovery.json"]
"""

"""The services of a platform, the same in containers and as processes: to which profile each belongs, its port, and what opens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .settings import Settings

PROFILES = ("mlflow", "ray", "ray-client", "jupyter", "monitoring")


@dataclass(frozen=True, kw_only=True)
class Service:
    """``port``: the variable that names it, "" for what nobody calls from outside. ``opened_by``: the variable in ``.env`` that opens it.
    ``native``: whether it also runs without containers."""

    name: str
    profiles: tuple[str, ...]
    scheme: str = "http"
    port: str = ""
    opened_by: str = ""
    native: bool = True

    def address(self, settings: Settings) -> str:
        if self.name == "store" and settings["STORE_ENDPOINT_URL"]:
            return settings["STORE_ENDPOINT_URL"]
        return f"{self.scheme}://{settings.host}:{settings[self.port]}" if self.port else ""


SERVICES = (
    Service(name="postgres", profiles=("mlflow",), scheme="postgresql", port="POSTGRES_PORT", opened_by="POSTGRES_PASSWORD"),
    Service(name="store", profiles=("mlflow", "ray"), port="STORE_PORT", opened_by="AWS_SECRET_ACCESS_KEY"),
    Service(name="mlflow", profiles=("mlflow",), port="MLFLOW_PORT", opened_by="MLFLOW_TRACKING_PASSWORD"),
    Service(name="ray-head", profiles=("ray",), port="RAY_DASHBOARD_PORT", opened_by="RAY_AUTH_TOKEN"),
    Service(name="ray-worker-1", profiles=("ray",)),
    Service(name="ray-worker-2", profiles=("ray",), native=False),
    Service(name="ray-client", profiles=("ray-client",), port="RAY_CLIENT_PORT", opened_by="JUPYTER_TOKEN", native=False),
    Service(name="jupyter", profiles=("jupyter",), port="JUPYTER_PORT", opened_by="JUPYTER_TOKEN"),
    Service(name="run-metrics", profiles=("monitoring",)),
    Service(name="prometheus", profiles=("monitoring",), port="PROMETHEUS_PORT"),
    Service(name="grafana", profiles=("monitoring",), port="GRAFANA_PORT", opened_by="GRAFANA_ADMIN_PASSWORD", native=False),
)


def services_of(profiles: Sequence[str], *, native: bool) -> list[Service]:
    return [service for service in SERVICES if set(service.profiles) & set(profiles) and (service.native or not native)]

"""The services of a platform, the same in containers and as processes: to which profile each belongs, its port, and what opens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .settings import Settings

PROFILES = ("mlflow", "ray", "jupyter", "monitoring")


@dataclass(frozen=True, kw_only=True)
class Service:
    """``port``: the variable that names it, "" for a worker, which nobody calls. ``credentials``: the variables that open it."""

    name: str
    profiles: tuple[str, ...]
    scheme: str = "http"
    port: str = ""
    credentials: tuple[str, ...] = ()
    native: bool = True

    def address(self, settings: Settings) -> str:
        if self.name == "store" and settings["STORE_ENDPOINT_URL"]:
            return settings["STORE_ENDPOINT_URL"]
        return f"{self.scheme}://{settings.host}:{settings[self.port]}" if self.port else ""


SERVICES = (
    Service(name="postgres", profiles=("mlflow",), scheme="postgresql", port="POSTGRES_PORT", credentials=("POSTGRES_USER", "POSTGRES_PASSWORD")),
    Service(name="store", profiles=("mlflow", "ray"), port="STORE_PORT", credentials=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
    Service(name="mlflow", profiles=("mlflow",), port="MLFLOW_PORT", credentials=("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    Service(name="ray-head", profiles=("ray",), port="RAY_DASHBOARD_PORT", credentials=("RAY_AUTH_TOKEN",)),
    Service(name="ray-worker-1", profiles=("ray",)),
    Service(name="ray-worker-2", profiles=("ray",), native=False),
    Service(name="jupyter", profiles=("jupyter",), port="JUPYTER_PORT", credentials=("JUPYTER_TOKEN",)),
    Service(name="prometheus", profiles=("monitoring",), port="PROMETHEUS_PORT"),
    Service(name="grafana", profiles=("monitoring",), port="GRAFANA_PORT", credentials=("GRAFANA_ADMIN_PASSWORD",), native=False),
)


def services_of(profiles: Sequence[str], *, native: bool) -> list[Service]:
    return [service for service in SERVICES if set(service.profiles) & set(profiles) and (service.native or not native)]

"""Asking each service through its own protocol whether it does its work, the same in containers and as processes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import PlatformError, UnhealthyError
from . import object_store, postgres
from .native.programs import needs
from .services import Service
from .settings import Settings

_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """``detail``: what was seen, or in one clause what is wrong. ``hint``: what to do about it."""

    service: str
    ok: bool
    detail: str
    hint: str = ""


def check(service: Service, settings: Settings) -> Health:
    """Takes seconds at most, and raises nothing for a service that is down or answers nonsense."""
    try:
        detail = _CHECKS[service.name](settings)
    except PlatformError as error:
        return Health(service=service.name, ok=False, detail=settings.redact(error.message.removeprefix(f"{service.name} ")), hint=error.hint or "")
    except (ConnectionRefusedError, http.client.RemoteDisconnected):
        return Health(service=service.name, ok=False, detail="does not listen")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Health(service=service.name, ok=False, detail=settings.redact(f"does not answer: {type(error).__name__} {error}")[:160])
    return Health(service=service.name, ok=True, detail=detail)


def check_all(services: Sequence[Service], settings: Settings) -> list[Health]:
    require_packages(services)
    return [check(service, settings) for service in services]


def ask(settings: Settings, port: str, path: str, *, headers: Mapping[str, str] | None = None, body: Any = None) -> Any:
    """The JSON (or text) that a service says with status 200. Goes through no proxy. Raises UnhealthyError for another status."""
    connection = http.client.HTTPConnection(settings.host, settings.port(port), timeout=_TIMEOUT_S)
    try:
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json"} if data else {}
        connection.request("POST" if data else "GET", path, body=data, headers=sent | dict(headers or {}))
        answer = connection.getresponse()
        text = answer.read(1 << 24).decode(errors="replace")
    finally:
        connection.close()
    if answer.status in (401, 403):
        raise UnhealthyError(f"refuses the credentials of .env (status {answer.status})", hint="A change in .env takes effect with: scanvit platform up")
    if answer.status != 200:
        raise UnhealthyError(f"answers with status {answer.status}")
    return json.loads(text) if "json" in (answer.getheader("Content-Type") or "") else text


def basic(settings: Settings) -> dict[str, str]:
    from base64 import b64encode

    pair = f"{settings['MLFLOW_TRACKING_USERNAME']}:{settings['MLFLOW_TRACKING_PASSWORD']}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def require_packages(services: Sequence[Service]) -> None:
    """What the checks ask with, in containers too. Raises EngineError."""
    names = {service.name for service in services}
    for service, module in (("postgres", "psycopg"), ("store", "boto3")):
        if service in names:
            needs(module, extra="server")


def _postgres(settings: Settings) -> str:
    with postgres.connect(settings) as connection:
        connection.execute("SELECT 1")
        return f"PostgreSQL {connection.info.server_version // 10000}"


def _store(settings: Settings) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        missing = object_store.missing_buckets(settings)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in (401, 403):
            raise UnhealthyError("refuses the credentials of .env", hint="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env.") from None
        raise UnhealthyError(f"answers with status {status}") from None
    except BotoCoreError as error:
        raise UnhealthyError("does not listen" if "Could not connect" in str(error) else f"does not answer: {type(error).__name__}") from None
    if missing:
        raise UnhealthyError(f"the bucket {' and the bucket '.join(missing)} is missing", hint="scanvit platform up makes it, restore fills it.")
    return f"S3, buckets {settings['MLFLOW_BUCKET']} and {settings['RAY_BUCKET']}"


def _mlflow(settings: Settings) -> str:
    ask(settings, "MLFLOW_PORT", "/health")
    ask(settings, "MLFLOW_PORT", "/api/2.0/mlflow/experiments/search", headers=basic(settings), body={"max_results": 1})
    version = ask(settings, "MLFLOW_PORT", "/version", headers=basic(settings))
    return f"MLflow {str(version).strip()}, with accounts"


def ray_nodes(settings: Settings) -> list[dict[str, Any]]:
    """Those that the head holds for alive, as its dashboard describes them."""
    token = {"Authorization": f"Bearer {settings['RAY_AUTH_TOKEN']}"}
    answer = ask(settings, "RAY_DASHBOARD_PORT", "/nodes?view=summary", headers=token)
    return [node for node in answer["data"]["summary"] if node["raylet"].get("state") == "ALIVE"]


def _ray_head(settings: Settings) -> str:
    nodes = ray_nodes(settings)
    if not any(node["raylet"].get("isHeadNode") for node in nodes):
        raise UnhealthyError("the dashboard answers, but the head node is not alive")
    return f"Ray, {len(nodes)} node{'s' if len(nodes) > 1 else ''}"


def _ray_worker(number: int) -> Callable[[Settings], str]:
    def check_worker(settings: Settings) -> str:
        workers = [node for node in ray_nodes(settings) if not node["raylet"].get("isHeadNode")]
        if len(workers) < number:
            raise UnhealthyError(f"the head sees {len(workers)} live worker{'s' if len(workers) != 1 else ''}")
        total = workers[number - 1]["raylet"].get("resourcesTotal", {})
        return ", ".join(f"{int(total[name])} {name}" for name in ("CPU", "GPU") if total.get(name)) or "alive"

    return check_worker


def _jupyter(port: str) -> Callable[[Settings], str]:
    def check_jupyter(settings: Settings) -> str:
        answer = ask(settings, port, "/api/status", headers={"Authorization": f"token {settings['JUPYTER_TOKEN']}"})
        return f"Jupyter, {answer['kernels']} kernels"

    return check_jupyter


def _targets(settings: Settings) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = ask(settings, "PROMETHEUS_PORT", "/api/v1/targets?state=active")["data"]["activeTargets"]
    return targets


def _run_metrics(settings: Settings) -> str:
    """Nobody but Prometheus calls it, so Prometheus is asked."""
    (target,) = [target for target in _targets(settings) if target["labels"]["job"] == "scanvit"]
    if target["health"] != "up":
        raise UnhealthyError(f"Prometheus does not reach it: {target['lastError'] or 'not asked yet'}")
    count = ask(settings, "PROMETHEUS_PORT", "/api/v1/query?query=count(scanvit_running)")["data"]["result"]
    return f"{count[0]['value'][1] if count else 0} runs"


def _prometheus(settings: Settings) -> str:
    ask(settings, "PROMETHEUS_PORT", "/-/ready")
    targets = _targets(settings)
    return f"{sum(t['health'] == 'up' for t in targets)} of {len(targets)} targets up"


def _grafana(settings: Settings) -> str:
    return f"Grafana {ask(settings, 'GRAFANA_PORT', '/api/health')['version']}"


_CHECKS: dict[str, Callable[[Settings], str]] = {
    "postgres": _postgres,
    "store": _store,
    "mlflow": _mlflow,
    "ray-head": _ray_head,
    "ray-worker-1": _ray_worker(1),
    "ray-worker-2": _ray_worker(2),
    "ray-client": _jupyter("RAY_CLIENT_PORT"),
    "jupyter": _jupyter("JUPYTER_PORT"),
    "run-metrics": _run_metrics,
    "prometheus": _prometheus,
    "grafana": _grafana,
}

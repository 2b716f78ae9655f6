"""``up``, ``status`` and ``down``: what they do, whatever engine drives the services."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from ..core.errors import PlatformStateError, UnhealthyError
from . import object_store
from .engine import Engine, engine_for
from .health import Health, check_all, require_packages
from .native.mlflow_server import set_admin_password
from .services import Service, services_of
from .settings import Settings, load, rebind, write
from .state import RUNTIME_FILE, exclusive, read_state, write_state

_WAIT_S = 600.0
OnHealth = Callable[[Health, float], None]  # (a service that has come up, seconds since the start)


def running(folder: Path) -> tuple[Settings, Engine, list[Service]]:
    """Raises PlatformStateError where nothing is up."""
    settings, state = load(folder), read_state(folder)
    if state is None or not state.profiles:
        raise PlatformStateError(f"The platform in {folder} is not up.", hint="Start it: scanvit platform up")
    return settings, engine_for(state, None), services_of(state.profiles, native=state.engine == "native")


def up(
    folder: Path,
    profiles: Sequence[str],
    *,
    engine: str | None,
    bind: str | None = None,
    accelerator: str | None = None,
    on_health: OnHealth,
) -> list[Health]:
    """Start the profiles beside those that run, and wait until every service is healthy.

    Raises PlatformStateError, EngineError, PortTakenError before anything is started, and UnhealthyError for a service that does not come up;
    the others are left running then.
    """
    settings = load(folder)
    with exclusive(folder):
        state = read_state(folder)
        driver = engine_for(state, engine)
        settings = rebind(settings, bind=bind, accelerator=accelerator)
        wanted = tuple(dict.fromkeys([*(state.profiles if state else ()), *profiles]))
        services = services_of(wanted, native=driver.name == "native")
        require_packages(services)
        driver.preflight(settings, wanted)
        write(settings)
        driver.start(settings, wanted)
        return wait_healthy(settings, driver, services, on_health)


def wait_healthy(settings: Settings, driver: Engine, services: Sequence[Service], on_health: OnHealth) -> list[Health]:
    """Until every service is healthy. Makes the buckets that are missing. Raises UnhealthyError."""
    started, told, password_set = time.monotonic(), set(), False
    while True:
        found = check_all(services, settings)
        for health in found:
            if health.ok and health.service not in told:
                told.add(health.service)
                on_health(health, time.monotonic() - started)
            if health.service == "store" and "is missing" in health.detail:
                object_store.make_buckets(settings)
            if health.service == "mlflow" and "refuses the credentials" in health.detail and not password_set:
                set_admin_password(settings)
                password_set = True
        if all(health.ok for health in found):
            return found
        failures = driver.failures(settings)
        if failures or time.monotonic() - started > _WAIT_S:
            raise _unhealthy(settings, driver, found, failures)
        time.sleep(0.5)


def _unhealthy(settings: Settings, driver: Engine, found: Sequence[Health], failures: dict[str, str]) -> UnhealthyError:
    sick = next((h for h in found if h.service in failures and not h.ok), next(h for h in found if not h.ok))
    why = failures.get(sick.service) or next((f"{name}: {text}" for name, text in failures.items()), sick.detail)
    message = f"{sick.service} is not healthy: {why}."
    if words := last_words(settings, driver, sick.service):
        message += f"\nIts last words:\n{words}"
    return UnhealthyError(message, hint=sick.hint or f"scanvit platform logs {sick.service} tells more. What did come up still runs.")


def last_words(settings: Settings, driver: Engine, service: str, count: int = 5) -> str:
    """The end of a service's log, without secrets."""
    try:
        lines = list(driver.logs(settings, service, lines=count, following=False))
    except PlatformStateError:
        return ""
    return "\n".join(f"  {settings.redact(click.unstyle(line))[:300]}" for line in lines[-count:])  # cut last: half a secret is not found


def require_healthy(settings: Settings, services: Sequence[Service], names: Sequence[str]) -> None:
    """Raises PlatformStateError or UnhealthyError where one of ``names`` is not up or does not answer."""
    by_name = {service.name: service for service in services}
    if missing := [name for name in names if name not in by_name]:
        raise PlatformStateError(f"{' and '.join(missing)} does not run here.", hint="Start it: scanvit platform up mlflow")
    for health in check_all([by_name[name] for name in names], settings):
        if not health.ok:
            raise UnhealthyError(f"{health.service} is not healthy: {health.detail}.", hint=health.hint or "scanvit platform up starts what is down.")


def down(folder: Path, *, volumes: bool, engine: str | None) -> bool:
    """Stop everything, also what a killed supervisor has left. Nothing happens where nothing runs. False where there was no data either.

    ``volumes``: with the data of the engine that runs or has run last. Raises PlatformStateError where that is not known, and for another
    ``engine``.
    """
    settings = load(folder)
    with exclusive(folder):
        state = read_state(folder)
        has_data = state is not None or any((folder / name).exists() for name in ("data", RUNTIME_FILE))
        if volumes and state is None and engine is None:
            if not has_data:
                return False  # never up, or deleted before
            raise PlatformStateError(
                f"Nothing says what {folder} was run by. No data was deleted.",
                hint=f"Name it: scanvit platform down --dir {folder} --volumes --native, or --engine docker or podman in place of --native",
            )
        if volumes and state and engine not in (None, state.engine):
            hint = f"Leave the engine out: scanvit platform down --dir {folder} --volumes"
            raise PlatformStateError(f"{folder} has the data of {state.engine}, not of {engine}. No data was deleted.", hint=hint)
        if state and not state.profiles and state.engine != "native" and not volumes:
            return True  # down already: its engine need not be here any more
        driver = engine_for(state, engine or (None if state else "native"))
        if volumes and state is None and driver.name != "native" and (folder / "data").exists():
            hint = f"Delete it by: scanvit platform down --dir {folder} --volumes --native"
            raise PlatformStateError(f"{folder} has the data of plain processes, which {driver.name} does not delete. No data was deleted.", hint=hint)
        driver.stop(settings, volumes=volumes)
        write_state(folder, replace(state, profiles=(), paused=()) if state and not volumes else None)
        return has_data or driver.name != "native"  # the volumes of containers lie elsewhere

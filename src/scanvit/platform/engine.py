"""What drives the services: containers or plain processes. The rest of the platform does not care which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ..core.errors import PlatformStateError
from .compose import Compose, detect
from .native.engine import Native
from .settings import Settings
from .state import State


class Engine(Protocol):
    name: str

    def preflight(self, settings: Settings, profiles: Sequence[str]) -> None:
        """Raises EngineError or PortTakenError before anything is started."""

    def start(self, settings: Settings, profiles: Sequence[str]) -> None:
        """Returns when all is under way. What runs already and has not changed is left alone."""

    def failures(self, settings: Settings) -> dict[str, str]:
        """{service: why} of those that will not come up by waiting longer."""

    def restarts(self, settings: Settings) -> dict[str, int]:
        """How often each service was restarted because it died."""

    def logs(self, settings: Settings, service: str, *, lines: int, following: bool) -> Iterator[str]: ...

    def pause(self, settings: Settings, service: str) -> None:
        """Stop one service until ``resume``."""

    def resume(self, settings: Settings, service: str) -> None: ...

    def postgres_tool(self, settings: Settings, name: str) -> tuple[list[str], dict[str, str]]:
        """(command, environment) of pg_dump or pg_restore with the connection's options; the password is in the environment."""

    def stop(self, settings: Settings, *, volumes: bool) -> None:
        """``volumes``: with all their data."""


def engine_for(state: State | None, wanted: str | None) -> Engine:
    """The one asked for, else the one that runs or has run last, else the container engine that is installed. Raises EngineError, PlatformStateError."""
    if state and state.profiles and wanted not in (None, state.engine):
        raise PlatformStateError(f"The platform runs by {state.engine}.", hint=f"First: scanvit platform down, with the same --dir. Then start it by {wanted}.")
    name = wanted or (state.engine if state else None)
    if name == "native":
        return Native()
    return Compose(detect(name))

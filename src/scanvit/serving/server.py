"""uvicorn with time limits of our own: it waits for ever for the head of a request."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.errors import ConfigError, PortTakenError
from .app import Settings, make_app

if TYPE_CHECKING:
    from ..evaluation.engine import Engine

__all__ = ["Settings", "bind", "is_loopback", "serve"]

_CONNECTIONS = 64
_HEAD_S = 10.0
_SHORTEST_TOKEN = 16


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def bind(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket, made before the network is loaded, so that a taken port is known at once. Raises PortTakenError, ConfigError."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{host!r} is no address of this machine: {error.strerror}.", hint="Use 127.0.0.1, or 0.0.0.0 for all.") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(_CONNECTIONS)
        except OSError as error:
            hint = "Choose another with --port, or --port 0 for any free one."
            raise PortTakenError(f"{host} port {port} cannot be listened on: {error.strerror}.", hint=hint) from None
        yield listening


def serve(engine: Engine, listening: socket.socket, settings: Settings) -> None:
    """Until SIGINT or SIGTERM. Raises ConfigError for a secret that can be guessed."""
    if settings.token is not None and len(settings.token) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"SCANVIT_SERVE_TOKEN has fewer than {_SHORTEST_TOKEN} characters.", hint="For example: export SCANVIT_SERVE_TOKEN=$(openssl rand -hex 16)"
        )
    config = uvicorn.Config(
        make_app(engine, settings),
        http=_Impatient,
        ws="none",
        lifespan="on",
        access_log=False,  # requests name nothing that may be kept
        log_level=logging.WARNING,
        server_header=False,
        timeout_keep_alive=int(_HEAD_S),
        timeout_graceful_shutdown=5,
        limit_concurrency=_CONNECTIONS,
    )
    blank = np.zeros((1, *engine.contract.shape), np.uint8)
    engine.explain(blank, [0])  # what is imported and set up at the first use shall not cost the first caller's time
    # uvicorn ends by the very signal that stopped it.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


class _Impatient(H11Protocol):
    """Closes a connection whose first request has no head after ``_HEAD_S``, and one whose next has none after uvicorn's ``timeout_keep_alive``:
    uvicorn forgets that limit at the first byte, so that half-sent heads would hold all connections for good."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle = self.loop.call_later(_HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        limit = self.timeout_keep_alive_task
        super().data_received(data)
        finished: Any = self.cycle
        if limit is not None and self.timeout_keep_alive_task is None and finished is not None and finished.response_complete:
            self.timeout_keep_alive_task = self.loop.call_later(max(0.0, limit.when() - self.loop.time()), self.timeout_keep_alive_handler)

    def _give_up(self) -> None:
        waiting: Any = self.cycle  # None until there is a request, whatever its type says
        if waiting is None and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

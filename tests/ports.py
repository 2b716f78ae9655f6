"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import os
import random
import socket

import pytest

# Below the ports that systems give to outgoing connections (Linux: from 32768): one of those could be taken between the choice and the start of the
# server. Above those that Ray gives to its workers (10002 to 19999).
_FIRST, _LAST = 20000, 32000
# Each process of pytest has a share of its own: some servers start long after their ports were chosen.
_SHARE = (_LAST - _FIRST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_MINE = _FIRST + _SHARE * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on."""
    for first in random.SystemRandom().choices(range(_MINE, _MINE + _SHARE - count), k=200):
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    pytest.skip("no free ports")


def free_port() -> int:
    return free_ports(1)

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scanvit.serving import server
from scanvit.serving.server import bind

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PATIENCE_S = 20.0


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that waits a second for a head."""
    monkeypatch.setattr(server, "_HEAD_S", 1.0)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("served"))])
    with bind("127.0.0.1", 0) as listening:
        running = uvicorn.Server(uvicorn.Config(app, http=server._Impatient, ws="none", log_level="error", timeout_keep_alive=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        running.should_exit = True
        thread.join()


def read_answer(caller: socket.socket) -> bytes:
    """Until the end of the one answer."""
    got = b""
    while not got.endswith(b"served"):
        got += caller.recv(1000) or pytest.fail(f"closed after {got!r}")
    return got


@pytest.mark.parametrize("begun", [b"G", b"", _REQUEST[:-2]], ids=["a byte", "nothing", "all but its end"])
def test_a_second_head_that_does_not_come_frees_the_connection(address: tuple[str, int], begun: bytes) -> None:
    with socket.create_connection(address, timeout=_PATIENCE_S) as caller:
        for _ in range(2):  # a whole second request is answered
            caller.sendall(_REQUEST)
            assert read_answer(caller).startswith(b"HTTP/1.1 200")
        caller.sendall(begun)
        assert caller.recv(1000) == b"", "closed, and nothing said"


def test_a_first_head_that_does_not_come_is_told_so(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=_PATIENCE_S) as caller:
        caller.sendall(_REQUEST[:10])
        assert caller.recv(1000).startswith(b"HTTP/1.1 408")

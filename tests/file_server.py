"""A real HTTP server on loopback that can misbehave: it cuts, lies, ignores, refuses, redirects and hangs."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[["Handler", bytes], None]
"""Answers one request for a file of these bytes."""


@dataclass
class Seen:
    path: str
    headers: Message
    sent_bytes: int = 0


class FileServer:
    """``files``: {path: bytes}. ``answers``: {path: queue of answers}, used up one a request; then the file is served as a good server does."""

    def __init__(self, *, tls: tuple[Path, Path] | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[Seen] = []
        self.bytes_per_s: float | None = None
        self.has_etag = True
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self._scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up in the handshake
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def url(self, path: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Good:
    """What a good server does, but for what is said here."""

    cut_at: int | None = None
    """Close the connection after so many bytes of the body."""
    length: int | None = None
    """Say this Content-Length instead of the true one."""
    ignores_range: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    says_length: bool = True

    def __call__(self, handler: Handler, data: bytes) -> None:
        owner, start, etag = handler.owner, 0, f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range", etag) == etag
        status = 200
        if wanted and same and not self.ignores_range:
            start, status = int(wanted[1]), 206
        if start >= len(data) and status == 206:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = data[start:]
        handler.send_response(self.status or status)
        headers = {"ETag": etag} if owner.has_etag else {}
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif self.says_length:
            headers["Content-Length"] = str(len(body) if self.length is None else self.length)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for name, value in (headers | self.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.send_body(body if self.cut_at is None else body[: self.cut_at], chunked=self.chunked, ended=self.cut_at is None)


@dataclass
class Status:
    """An answer without the file."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __call__(self, handler: Handler, data: bytes) -> None:
        handler.send_response(self.code)
        for name, value in ({"Content-Length": str(len(self.body))} | self.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body)


@dataclass
class Hang:
    """Silence, before the answer or after some bytes of the body."""

    after: int | None = None

    def __call__(self, handler: Handler, data: bytes) -> None:
        if self.after is not None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
            handler.end_headers()
            handler.send_body(data[: self.after], chunked=False, ended=True)
        handler.owner.closing.wait(20)


class Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.seen = Seen(self.path, self.headers)
        self.owner.seen.append(self.seen)
        queue = self.owner.answers.get(path, [])
        answer = queue.pop(0) if queue else (Good() if path in self.owner.files else Status(404))
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):  # the client left
            answer(self, self.owner.files.get(path, b""))

    def send_body(self, body: bytes, *, chunked: bool, ended: bool) -> None:
        step = 16384 if self.owner.bytes_per_s is None else 4096
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            self.wfile.flush()
            self.seen.sent_bytes += len(piece)
            if self.owner.bytes_per_s is not None:
                time.sleep(len(piece) / self.owner.bytes_per_s)
        if chunked and ended:
            self.wfile.write(b"0\r\n\r\n")
        if not ended and not self.owner.closing.is_set():
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *args: object) -> None:
        pass

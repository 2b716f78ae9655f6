"""What stands before every request: who may call, under which name, and what a browser may do with the answer."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import RequestError
from .answers import refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_PROTECTED = "/api/"


class Guard:
    """ASGI middleware. Refuses a Host that is no address, no ``localhost`` and not among the allowed names: a foreign page whose name was pointed
    at this machine (DNS rebinding) still sends its own name. Refuses requests of other sites' pages, and calls of the API without the token."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str], token: str | None) -> None:
        self._app, self._token = app, token
        self._names = {"localhost", *(name.lower() for name in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        error = self._refusal({name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}, scope["path"])
        await (self._app if error is None else refused(error))(scope, receive, with_headers)

    def _refusal(self, headers: dict[str, str], path: str) -> RequestError | None:
        host = headers.get("host", "")
        if not is_address(bare := host_name(host)) and bare not in self._names:
            return RequestError(f"This server is not called {host!r:.100}.", hint="Use its address, or start it with --allowed-host NAME.", status=421)
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return RequestError("A page of another site may not call this server.", hint="Open the server's own page.", status=403)
        if self._token and path.startswith(_PROTECTED):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
                return RequestError("This server asks for its secret.", hint="Send the header 'Authorization: Bearer SECRET'.", status=401)
        return None


def host_name(host: str) -> str:
    """Of a Host header, without the port: "[::1]:8080" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""Which addresses may be fetched, and how a redirect is followed.

https only, unless the address is of this very machine (loopback). Credentials go to the host they are meant for and to no other.
"""

from __future__ import annotations

import ipaddress
import ssl
import urllib.request
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from ..core.errors import FetchError


def check_address(url: str, *, loopback: bool = True) -> SplitResult:
    """The parts of an address that may be fetched; ``loopback``: is plain http to this machine allowed? Raises FetchError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise FetchError("An address cannot be read.", hint="Write it as https://HOST/PATH.") from None
    if not parts.hostname or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise FetchError(f"The address {public_address(url)!r} cannot be read.", hint="Write it as https://HOST/PATH, with %20 for a blank.")
    if parts.username is not None or parts.password is not None:
        raise FetchError(f"The address {public_address(url)} holds a credential.", hint="Take it out: credentials come from the environment.")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback and is_loopback(parts.hostname)):
        raise FetchError(f"{public_address(url)} is refused: it is not https.", hint="Give an https address, or download it by hand.")
    return parts


def public_address(url: str) -> str:
    """Without user, password, query and fragment, any of which may hold a secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an unreadable address"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def build_opener(url: str) -> urllib.request.OpenerDirector:
    """Opens http and https alone (no files, no ftp), through the proxy of the environment unless ``url`` is of this machine."""
    parts = check_address(url)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if is_loopback(parts.hostname or "") else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        old = urlsplit(req.full_url)
        new = check_address(newurl, loopback=is_loopback(old.hostname or ""))
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if request is not None and authorization and (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, new.port):
            request.add_unredirected_header("Authorization", authorization)
        return request

"""Warnings about clusters that others can reach. A Ray cluster runs whatever it is sent (CVE-2023-48022, "ShadowRay")."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from ..storage.address import is_loopback, public_address

_log = logging.getLogger(__name__)
_ANSWER_S = 5.0


def warn_of_host(host: str | None) -> None:
    """Before a dashboard of our own is started on ``host``; None: there is none."""
    if host is not None and not is_loopback(host):
        _log.warning(
            "The dashboard listens on %s: whoever reaches its port and has the token can run code on this machine. Ray was exploited in this way at scale "
            "(CVE-2023-48022). Prefer 127.0.0.1 and an SSH tunnel.",
            host,
        )


def warn_of_dashboard(address: str) -> None:
    """Of a cluster that somebody else started. ``address``: http://HOST:PORT of its dashboard, which is its job server too."""
    parts, place = urlsplit(address), public_address(address)
    if answers_without_token(address):
        _log.warning(
            "The job server at %s asks for no token: anyone who reaches it can run code on the cluster's machines. Ray was exploited in this way at scale "
            "(CVE-2023-48022). Start the cluster's nodes with RAY_AUTH_MODE=token.",
            place,
        )
    if not is_loopback(parts.hostname or ""):
        unread = "" if parts.scheme == "https" else "; the token and the jobs are not encrypted on the way to it"
        _log.warning(
            "The job server at %s listens on more than loopback: a token that leaks is enough to run code on the cluster's machines%s. "
            "Start the head with --dashboard-host 127.0.0.1, and reach it by ssh -L 8265:127.0.0.1:8265 HEAD.",
            place,
            unread,
        )


def answers_without_token(address: str) -> bool:
    """Whether the job server lists its jobs for one who shows no token. One that does not answer is not open."""
    import requests

    try:  # auth: else requests takes a password from ~/.netrc
        answer = requests.get(f"{address.rstrip('/')}/api/jobs/", timeout=_ANSWER_S, allow_redirects=False, auth=lambda request: request)
    except requests.RequestException:
        return False
    return answer.status_code == 200

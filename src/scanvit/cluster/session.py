"""Connecting to a Ray cluster, or starting one on this machine for as long as a run lasts.

A Ray cluster runs whatever it is sent: whoever reaches its ports owns its machines (CVE-2023-48022, "ShadowRay"). So what is started here
asks for a token, and listens on loopback alone: Ray's ports, unless the dashboard is asked for on another host, and gloo's between the workers.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ..core.errors import ClusterError, ConfigError, ScanvitError
from ..data.ray_decoding import require_ray
from ..storage.address import is_loopback
from .exposure import warn_of_dashboard, warn_of_host

_log = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 128 << 20
"""Ray would take a third of the memory for objects that a training never makes."""
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray's node has the address 127.0.0.1, and its processes listen there alone: its habit on those systems, where firewalls ask about every other."""
_ACCESS_HINT = "Give the cluster's token: RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN), with RAY_AUTH_MODE=token."


@contextmanager
def connected(
    address: str | None,
    *,
    cpus: float,
    gpus: float | None,
    silence_s: float = 600.0,
    dashboard: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Any]:
    """The module ray, connected to ``address``; without one, to a new cluster on this machine with ``cpus``, gone at the block's end.

    ``silence_s``: for how long Ray Train hears nothing of a worker before it gives it up. ``dashboard``: host on which the new cluster's dashboard
    listens; None: it has none. ``say`` is told its address. Raises ClusterError.
    """
    is_there = "ray" in sys.modules and require_ray().is_initialized()  # in a notebook: it is not ours to set up or to stop
    with _chosen(own=address is None and not is_there, silence_s=silence_s):
        ray = require_ray()
        if is_there:
            yield ray
            return
        try:
            _connect(ray, address, cpus=cpus, gpus=gpus, dashboard=dashboard, say=say)
        except Exception as error:  # Ray raises bare ones as well
            if isinstance(error, ScanvitError):
                raise
            where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
            raise ClusterError(f"There is no connection to {where}: {_first_line(error)}", hint=f"Check --address and RAY_ADDRESS. {_ACCESS_HINT}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _chosen(*, own: bool, silence_s: float) -> Iterator[None]:
    """Ray's settings in the environment, where the user has not chosen them, for the block: another cluster of this process has its own. Ray reads some
    of them at its import."""
    environment = dict(os.environ)
    secure(environment, create=own)
    if own:
        environment.setdefault(_LOOPBACK, "0")
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        environment.setdefault("RAY_worker_niceness", "0")  # as scanvit train; Ray's own 15 gives way to whatever else runs here
        environment.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes a node away from a cluster of one
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a checkpoint counts when the controller has polled it
    environment.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    environment.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", f"{silence_s:g}")
    ours = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in ours.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def _connect(ray: Any, address: str | None, *, cpus: float, gpus: float | None, dashboard: str | None, say: Callable[[str], None]) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ensure_reachable(address)
        _warn_of_its_dashboard(ray.init(address=address, **quiet).dashboard_url, address, ray.util.get_node_ip_address())
        return
    warn_of_host(dashboard)
    own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    own |= {"num_gpus": gpus} if gpus is not None else {}
    own |= {"include_dashboard": dashboard is not None} | ({"dashboard_host": dashboard} if dashboard else {})
    started = _start(ray, own | quiet)
    if dashboard:
        say(f"dashboard: http://{started.dashboard_url}, with the token in {token_file(os.environ)}")


def _start(ray: Any, options: dict[str, Any]) -> Any:
    """Ray gives its node 30 s to start, which a busy machine may need more than once. What a start leaves behind is ended before the next."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    for last in (False, False, True):
        try:
            return ray.init(address="local", **options)
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
        _log.warning("The cluster on this machine was slow to start: starting it again.")
        ray.shutdown()
        left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
    raise AssertionError


def secure(environment: MutableMapping[str, str], *, create: bool) -> None:
    """Turn token authentication on unless the environment decides otherwise. ``create``: make the token where there is none yet."""
    if environment.setdefault("RAY_AUTH_MODE", "token") != "token":
        _log.warning("RAY_AUTH_MODE=%s: anyone who reaches this Ray cluster's ports can run code on its machines.", environment["RAY_AUTH_MODE"])
        return
    if environment.get("RAY_AUTH_TOKEN"):
        return
    file = token_file(environment)
    if create and not (file.is_file() and file.stat().st_size):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32))


def token_file(environment: MutableMapping[str, str]) -> Path:
    """Ray's own rule."""
    return Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def read_token(environment: MutableMapping[str, str]) -> str | None:
    """None where authentication is off or there is no token."""
    if environment.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token.strip()
    try:
        return token_file(environment).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def ensure_reachable(address: str) -> None:
    """``check_reachable`` with this process's token."""
    secure(os.environ, create=False)
    check_reachable(address, token=read_token(os.environ))


def check_reachable(address: str, *, token: str | None, timeout_s: float = 10.0) -> None:
    """Ask the head for its cluster's name: in a second it says what ``ray.init`` says after twenty. Raises ClusterError or ConfigError."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise ConfigError(
            f"{address} is no address of a cluster's head.",
            hint="Write HOST:6379, from a machine of the cluster. From elsewhere, send a job to its dashboard: scanvit ray submit --address http://HOST:8265",
        )
    if not colon or not host or not port.isdigit():
        raise ConfigError(f"{address!r} is no address of a cluster's head.", hint="Write HOST:PORT; Ray's port is 6379 unless chosen otherwise.")
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # with certificates of the cluster's own, which only Ray knows how to use
    import grpc

    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId", request_serializer=bytes, response_deserializer=bytes)

        def answer(*metadata: tuple[str, str]) -> Any:
            try:
                ask(b"", timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        code = answer(*((("authorization", f"Bearer {token}"),) if token else ()))
        is_open = code == grpc.StatusCode.OK and (token is None or answer() == grpc.StatusCode.OK)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        said = "refused this token" if token else "asks for a token, and there is none"
        raise ClusterError(f"The Ray cluster at {address} {said}.", hint=_ACCESS_HINT)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise ClusterError(f"No Ray cluster answers at {address}.", hint="Check --address and RAY_ADDRESS, and that the head is up.")
    if is_open and token is None and os.environ.get("RAY_AUTH_MODE") == "token":
        hint = "Start its nodes with RAY_AUTH_MODE=token. To use it as it is: RAY_AUTH_MODE=disabled."
        raise ClusterError(f"The Ray cluster at {address} asks for no token: anyone who reaches it can run code on its machines.", hint=hint)
    if is_open:
        _log.warning("The Ray cluster at %s asks for no token: anyone who reaches it can run code on its machines.", address)


def _warn_of_its_dashboard(dashboard: str | None, address: str, own_ip: str) -> None:
    """``dashboard``: HOST:PORT, none where the cluster has no dashboard. One on loopback is looked at on the head alone."""
    if not dashboard:
        return
    head, host = address.rpartition(":")[0].strip("[]"), dashboard.rpartition(":")[0].strip("[]")
    if not is_loopback(host) or is_loopback(head) or head == own_ip:
        warn_of_dashboard(f"http://{dashboard}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

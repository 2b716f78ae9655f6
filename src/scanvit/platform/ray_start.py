"""``python -m scanvit.platform.ray_start start ...``: Ray's own command line, patient with busy machines, and without a server for ray://.

``ray start`` gives a node half a minute to register, its server for ray:// as long, and its raylet waits 15 s for each port of its agent that it
does not know; where that is too short, as on a machine that trains, the whole node ends and begins again from nothing. Nobody here calls by
ray://, which is one more open port: jobs come by the dashboard's.
"""

from __future__ import annotations

import importlib
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

PATIENCE = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_gcs_server_port_wait_time_s": "120"}
"""For what Ray lets itself be told. It reads them when it is imported."""
_NODE_S = 120.0


def patient(get_node: Callable[..., Any], patience_s: float) -> Callable[..., Any]:
    """``get_node`` that waits until the node has registered, at most ``patience_s``. Raises what it raises (RuntimeError) then."""

    def wait_for_node(*args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + patience_s
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.2)

    return wait_for_node


def told_beforehand(start_raylet: Callable[..., Any], persist_port: Callable[[str, str, str, int], None], name: str) -> Callable[..., Any]:
    """``start_raylet`` that lays down the agent's port, where it was chosen by who starts the node, where the raylet else finds it too late."""
    signature = inspect.signature(start_raylet)

    def start(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        if port := given.get("dashboard_agent_listen_port"):
            persist_port(given["session_dir"], given["node_id"], name, port)
        return start_raylet(*args, **kwargs)

    return start


def main() -> None:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from ray._private import services

    # Their types lack what is asked of them here.
    scripts: Any = importlib.import_module("ray.scripts.scripts")
    raylet: Any = importlib.import_module("ray._raylet")
    services.get_node = patient(services.get_node, _NODE_S)
    services.start_raylet = told_beforehand(services.start_raylet, raylet.persist_port, raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME)
    # No option leaves that server out; where its packages are missing, it is not started.
    scripts.get_ray_client_dependency_error = lambda: ImportError("ray:// is not served here")
    scripts.main()


if __name__ == "__main__":
    main()

"""Real Ray clusters for tests: several nodes on this machine or, in boxes, on several machines; with tokens, on private ports.

Each node is started in a session of its own (setsid), which its processes keep. That is how a node is found and killed with all its children,
and how a test sees that nothing was left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from tests.integration.boxes import Box
from tests.integration.conftest import SOURCES
from tests.ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
# The command ray; `ray start` gives a node 30 s to come up, and a dashboard 60 s (_PATIENCE): too short on a machine that is very busy.
_PATIENT_RAY = """
import sys, time
from ray._private import services
from ray.scripts.scripts import main
def patient(*args, ask=services.get_node, until=time.monotonic() + 300):
    while True:
        try:
            return ask(*args)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
services.get_node = patient
sys.argv[0] = "ray"
main()
"""
_PATIENCE = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"}
# Ray's own clocks, shortened: a node that stays silent is dead after about 5 s instead of 30.
FAST_CLOCKS = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 5}


def in_sessions(sessions: Collection[int]) -> list[psutil.Process]:
    """The living processes of these sessions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_at_once(processes: list[psutil.Process]) -> None:
    """SIGKILL to all; stopped first, so that none of them sees another die."""
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
    psutil.wait_procs(processes, timeout=10)


class Node:
    def __init__(self, box: Box | None) -> None:
        self.box = box
        self.address = box.address if box else "127.0.0.1"
        self.sessions: set[int] = set()

    def start(self, flags: list[str], environment: dict[str, str]) -> None:
        command = [*(self.box.enter if self.box else []), sys.executable, "-c", _PATIENT_RAY, "start", *flags]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.sessions.add(process.pid)
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said

    @property
    def processes(self) -> list[psutil.Process]:
        return in_sessions(self.sessions)

    def kill(self) -> None:
        """The whole node dies at once."""
        if self.box:
            self.box.kill()
        kill_at_once(self.processes)


class RayCluster:
    """``with RayCluster() as cluster: cluster.add_node(cpus=1)``. The head has no CPUs, so that work goes to the nodes.

    ``boxes``: the head starts in the first one, each further node in the next one.
    """

    def __init__(self, *, boxes: Iterator[Box] | None = None, head_options: Mapping[str, Any] | None = None, **environment: str) -> None:
        self.boxes = boxes
        self.folder = Path(tempfile.mkdtemp(prefix="scanvit-", dir="/tmp"))  # short: sockets below it have at most 107 letters
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"} | _PATIENCE
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        self.cache = self.folder / "cache"
        self.environment = clean | quiet | auth | {"SCANVIT_CACHE": str(self.cache), "PYTHONPATH": str(SOURCES)} | environment
        if boxes:
            self.environment["GLOO_SOCKET_IFNAME"] = "eth0"
        self.nodes: list[Node] = []
        options = {"num-cpus": 0, "system-config": json.dumps(FAST_CLOCKS), "include-dashboard": "false", "ray-client-server-port": free_port()}
        options |= dict(head_options or {})
        if "autoscaling-config" not in options:
            options["no-monitor"] = None
        try:
            self.head = self._start(head=True, options=options)
        except BaseException:
            self.close()
            raise

    def add_node(self, *, cpus: int = 1, **options: Any) -> Node:
        """One after another: two that start at once can get in each other's way."""
        return self._start(head=False, options={"num-cpus": cpus} | options)

    @property
    def address(self) -> str:
        return f"{self.head.address}:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """Of a driver."""
        return self.environment | {"RAY_ADDRESS": self.address, "RAY_TMPDIR": str(self.folder / "0")}

    @property
    def processes(self) -> list[psutil.Process]:
        return in_sessions({session for node in self.nodes for session in node.sessions})

    def _start(self, *, head: bool, options: dict[str, Any]) -> Node:
        node = Node(next(self.boxes) if self.boxes else None)
        folder = self.folder / (str(len(self.nodes)) if node.box else "0")  # nodes of one machine share its folder
        folder.mkdir(exist_ok=True)
        self.nodes.append(node)
        options |= {"node-ip-address": node.address, "min-worker-port": 0, "max-worker-port": 0, "object-store-memory": 100_000_000}
        options |= {"disable-usage-stats": None, "include-log-monitor": "false"}
        if head:
            self.port = options.get("port") or (6379 if node.box else free_port())
            options |= {"head": None, "port": self.port, "temp-dir": folder, "dashboard-host": "127.0.0.1"}
        else:
            options["address"] = self.address
        flags = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
        node.start(flags, self.environment | {"RAY_TMPDIR": str(folder)})
        return node

    def drain(self, node: Node, *, seconds: int) -> None:
        """Announce that the node will be taken away, as a cloud does with what it lends for less."""
        (node_id,) = {match[1] for process in node.processes if (match := re.search(r"--node-id=([0-9a-f]{56})", " ".join(process.cmdline())))}
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", str(seconds)]
        command = [RAY, "drain-node", "--address", self.address, "--node-id", node_id, *reason]
        done = subprocess.run(command, env=self.client_environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def query(self, code: str, timeout: float = 60) -> Any:
        """What ``code``, run in a driver of its own where ``ray`` is imported and connected, prints as JSON in its last line."""
        script = f"import json, ray\nray.init(address={self.address!r}, log_to_driver=False, logging_level=40)\n{code}"
        enter = self.head.box.enter if self.head.box else []
        done = subprocess.run([*enter, sys.executable, "-c", script], env=self.client_environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def close(self) -> None:
        """Kill all nodes with everything that runs on them."""
        for _ in range(5):
            if not (left := self.processes):
                break
            kill_at_once(left)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def autoscaling(folder: Path, *, max_workers: int, min_workers: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """(head options, environment) of a cluster whose autoscaler starts further nodes, of one CPU each, as processes of this machine."""
    port = free_port()
    nothing = (
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    )
    config = {
        "cluster_name": "scanvit-test",
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 60,
        # By its class: the defaults that Ray reads for its name, fake_multinode, are not in its wheel.
        "provider": {"type": "external", "module": _PROVIDER, "launch_multiple": True, "head_node_id": _HEAD, "gcs_address": f"127.0.0.1:{port}"},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": min_workers, "max_workers": max_workers},
        },
        "head_node_type": "ray.head.default",
        **{name: [] for name in nothing},
    }
    path = folder / "autoscaling.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    identity = {"RAY_CLOUD_INSTANCE_ID": _HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD, "RAY_enable_autoscaler_v2": "1"}
    return {"autoscaling-config": path, "port": port}, {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"} | identity


_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_HEAD = "f" * 51 + "00000"  # the name that Ray's fake provider gives to its head


def wait_for(condition: Any, what: str, timeout_s: float = 120, every_s: float = 0.2) -> Any:
    """The first true answer of ``condition()``."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if answer := condition():
            return answer
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s")

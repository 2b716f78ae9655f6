"""The driver's view of a run: the training on the board, shown on the terminal until it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ..core.errors import ScanvitError
from .board import Board, Snapshot
from .settings import ClusterSettings
from .terminal import Terminal

_READ_S = 0.5
_WAITING_S = 5.0
"""How often a run that waits for room says so."""
_STOP_S = 60.0
"""How long the workers have for a last checkpoint when the driver is told to stop."""


class Watch:
    def __init__(self, ray: Any, settings: ClusterSettings, resources: Mapping[str, float]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.settings, self.resources = ray, settings, dict(resources)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self.terminal = Terminal()
        self._failure: BaseException | None = None
        self._waiting_since = self._said_at = time.monotonic()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.terminal.close()
        self.ray.kill(self.board)

    def callback(self) -> Any:
        """For Ray Train's controller: it tells the board which workers failed and why."""
        from .callback import FailureCallback

        return FailureCallback(self.board)

    def follow(self, trainer: Any) -> dict[str, Any]:
        """Run ``trainer`` to its end: {"best_epoch", ...}, {"error"}, {"stopped"}, {"waited"} or {"failed"} with a sentence."""
        thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)  # Ray's own handling of Ctrl-C needs the main thread
        thread.start()
        deadline: float | None = None
        while thread.is_alive():
            try:
                thread.join(_READ_S)
                self._show(self.ray.get(self.board.read.remote()))
            except KeyboardInterrupt:
                if deadline is not None:
                    raise
                deadline = time.monotonic() + _STOP_S
                self.terminal.line("stopping: the workers write a checkpoint first (interrupt again not to wait)")
                self.board.stop.remote()
            if deadline is not None and time.monotonic() > deadline:
                raise KeyboardInterrupt
        snapshot = self.ray.get(self.board.read.remote())
        self._show(snapshot)
        return self._outcome(snapshot)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._failure = error

    def _show(self, snapshot: Snapshot) -> None:
        self.terminal.show(snapshot)
        now = time.monotonic()
        if any(worker.state != "lost" for worker in snapshot.workers.values()):
            self._waiting_since = now
        elif now - self._waiting_since > _WAITING_S and now - self._said_at > _WAITING_S:
            self._said_at = now
            self.terminal.line(self._shortage())

    def _shortage(self) -> str:
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        wanted = ", ".join(f"{name} {amount * self.settings.num_workers:g}" for name, amount in self.resources.items() if amount)
        there = ", ".join(f"{name} {has.get(name, 0):g} ({free.get(name, 0):g} free)" for name, amount in self.resources.items() if amount)
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        return f"waiting for {self.settings.num_workers} workers ({wanted}): the cluster has {nodes} nodes with {there}"

    def _outcome(self, snapshot: Snapshot) -> dict[str, Any]:
        if snapshot.outcome is not None:
            return snapshot.outcome
        failure = self._failure
        for error in (getattr(failure, "worker_failures", None) or {}).values():
            cause = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error
            if isinstance(cause, ScanvitError):
                return {"error": cause}
        controller = getattr(failure, "controller_failure", None)
        if (controller is not None and "Startup" in type(controller).__name__) or "Insufficient" in type(controller).__name__:
            return {"waited": f"The cluster had no room for the workers in {self.settings.wait_s:.0f} s: {self._shortage()}."}
        reason = " ".join(str(failure).split())[-400:] if failure else "no reason was given"
        return {"failed": f"The run failed on the cluster after {snapshot.attempts} starts of its workers: {reason}"}

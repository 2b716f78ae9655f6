"""The driver's view of a run: the training on the board, shown on the terminal until it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from ..core.errors import ScanvitError
from .board import Board, Snapshot
from .settings import ClusterSettings
from .terminal import Terminal

_READ_S = 0.5
_WAITING_S = 5.0
"""How often a run that waits for room says so."""
_ANSWER_S = 120.0
"""How long the board, an actor beside the driver, may take to answer."""
_START_S = 900.0
"""How long workers may take from their room to their first word: Python's imports on a cold node, an image to be fetched."""
_END_S = 60.0
"""How long a run that is given up may take to come to its end in Ray."""
_ABORT_S = 15.0
"""How long Ray Train's controller may take to end its workers and itself."""
_STOP_S = 60.0
"""How long the workers have for a last checkpoint when the driver is told to stop."""


class Watch:
    def __init__(self, ray: Any, settings: ClusterSettings, resources: Mapping[str, float], marks: Mapping[str, float]) -> None:
        """``marks``: Unix times of what has been done before, by name; the first is the beginning."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.settings, self.resources = ray, settings, dict(resources)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self.terminal = Terminal()
        self._marks: dict[str, float] | None = dict(marks)
        """Until the first step is made."""
        self._failure: BaseException | None = None
        self._stop_at: float | None = None
        self._alive_at = self._looked_at = time.monotonic()
        self._lacking_s = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.terminal.close()
        self.ray.kill(self.board)

    def callbacks(self) -> list[Any]:
        """For Ray Train's controller: it tells the board who it is, and which workers failed and why."""
        from .callback import ControllerNote, FailureCallback

        return [ControllerNote(self.board), FailureCallback(self.board)]

    def follow(self, trainer: Any) -> dict[str, Any]:
        """Run ``trainer`` to its end: {"best_epoch", ...}, {"error"}, {"stopped"}, {"waited"} or {"failed"} with a sentence."""
        thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)  # Ray's own handling of Ctrl-C needs the main thread
        thread.start()
        try:
            with _stop_signals() as signals:
                while thread.is_alive():
                    thread.join(_READ_S)
                    if (end := self._early_end(self._look(), signals)) is not None:
                        return end
            return self._outcome(self._look())
        except self.ray.exceptions.RayError as error:
            return {"failed": f"The cluster does not answer any more: {' '.join(str(error).split())[:200]}"}
        finally:
            self._end(thread)

    def _look(self) -> Snapshot:
        snapshot = self.ray.get(self.board.read.remote(), timeout=_ANSWER_S)
        assert isinstance(snapshot, Snapshot)
        self._show(snapshot)
        return snapshot

    def _early_end(self, snapshot: Snapshot, signals: list[int]) -> dict[str, Any] | None:
        """What the run comes to before its end, if it does."""
        if self._lacking_s > self.settings.wait_s:  # Ray itself waits without an end where the number of workers is a range
            return {"waited": self._no_room()}
        if time.monotonic() - self._alive_at > self.settings.wait_s + _START_S:
            return {"failed": f"The workers did not come up within {_START_S:.0f} s after they had got their room."}
        if signals and self._stop_at is None:
            if not any(worker.state == "training" for worker in snapshot.workers.values()):
                return {"stopped": "The run was asked to stop while no worker was training."}
            self._stop_at = time.monotonic() + _STOP_S
            self.terminal.line("stopping: the workers write a checkpoint first (interrupt again not to wait)")
            self.board.stop.remote()
        if len(signals) > 1 or (self._stop_at is not None and time.monotonic() > self._stop_at):
            saved = "no checkpoint" if snapshot.saved_step is None else f"the checkpoint of step {snapshot.saved_step}"
            return {"stopped": f"The run was stopped without waiting for its workers; {saved} is in the storage."}
        return None

    def _end(self, thread: threading.Thread) -> None:
        """Let nobody wait in Ray when the connection is closed: Ray's client, gone under a thread that waits in it, takes the process with it.

        The controller is asked first: what it has started on the cluster for itself ends with it then.
        """
        until, asked = time.monotonic() + _END_S, False
        while thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(self.ray.exceptions.RayError):
                controller = self.ray.get(self.board.controller.remote(), timeout=_END_S)
                if controller is not None and asked:
                    self.ray.kill(controller)
                elif controller is not None:
                    controller.abort.remote()
                    asked = True
                    thread.join(_ABORT_S)
            thread.join(_READ_S)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._failure = error

    def _show(self, snapshot: Snapshot) -> None:
        self.terminal.show(snapshot)
        if self._marks and "first step" in snapshot.marks:
            self.terminal.line(start_up(self._marks | snapshot.marks))
            self._marks = None
        now = time.monotonic()
        if any(worker.state != "lost" for worker in snapshot.workers.values()):
            self._alive_at = self._looked_at = now
            self._lacking_s = 0.0
        elif now - self._looked_at > _WAITING_S:
            shortage = self._shortage()
            self._lacking_s += now - self._looked_at if shortage else 0.0
            self._looked_at = now
            self.terminal.line(shortage or "the workers are starting")

    def _shortage(self) -> str | None:
        """What the cluster lacks; None where the workers have their room already, or will have it at once."""
        from ray.util import placement_group_table

        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        workers = self.settings.needed_workers
        wanted = {name: amount * workers for name, amount in self.resources.items() if amount}
        waiting = any(group["state"] == "PENDING" for group in placement_group_table().values())  # Ray asks for all workers' room together
        if not waiting and all(has.get(name, 0) >= amount for name, amount in wanted.items()):
            return None
        needs = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
        there = ", ".join(f"{name} {has.get(name, 0):g} ({free.get(name, 0):g} free)" for name in wanted)
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        return f"waiting for {workers} workers ({needs}): the cluster has {nodes} {'node' if nodes == 1 else 'nodes'} with {there}"

    def _no_room(self) -> str:
        return f"The cluster had no room for the workers in {self.settings.wait_s:.0f} s: {self._shortage() or 'they did not come up'}."

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
            return {"waited": self._no_room()}
        reason = " ".join(str(failure).split())[-400:] if failure else "no reason was given"
        return {"failed": f"The run failed on the cluster after {snapshot.attempts} starts of its workers: {reason}"}


def start_up(marks: Mapping[str, float]) -> str:
    """How long the run took to its first step, and what with."""
    times = list(marks.values())
    parts = ", ".join(f"{name} {now - before:.1f}" for name, before, now in zip(list(marks)[1:], times, times[1:], strict=False))
    return f"first step after {times[-1] - times[0]:.1f} s ({parts})"


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals to stop that have come. In a thread of a larger program there are none."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

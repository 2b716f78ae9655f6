"""The board: a small actor beside the driver, to which workers write how they are and on which they read whether to stop.

Nobody waits for it: a worker sends what it has to say, and looks after each step whether the answer is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..training.progress import Progress

_EVERY_S = 0.5
"""How often a worker tells of itself, and with it asks whether to stop."""


@dataclass
class WorkerState:
    rank: int
    node: str
    """Its address."""
    pid: int
    state: str = "starting"
    """starting, training, saved, finished, or lost."""
    step: int = 0
    images_per_s: float = 0.0
    """Of the whole run, as this rank measures it."""
    loss: float | None = None
    heard_at: float = field(default_factory=time.time)


@dataclass
class Snapshot:
    """What the driver reads."""

    workers: dict[int, WorkerState]
    attempts: int
    """How often a group of workers was started."""
    plan: dict[str, int] | None
    """steps_per_epoch, max_epochs and the step that the attempt began with; None before the first step."""
    epochs: list[dict[str, Any]]
    """Finished epochs that the driver has not been told of: {"epoch", "metrics", "best"}."""
    news: list[str]
    saved_step: int | None
    """Of the newest checkpoint in the storage."""
    outcome: dict[str, Any] | None
    """What the run came to."""
    marks: dict[str, float]
    """Unix times at which rank zero reached a stage for the first time."""


class Board:
    """Run as an actor with ``max_concurrency`` 1."""

    def __init__(self) -> None:
        self.workers: dict[int, WorkerState] = {}
        self.attempts, self.losses, self.stopping = 0, 0, False
        self.plan: dict[str, int] | None = None
        self.epochs: list[dict[str, Any]] = []
        self.news: list[str] = []
        self.saved_step: int | None = None
        self.outcome: dict[str, Any] | None = None
        self.marks: dict[str, float] = {}
        self._controller: Any = None

    def keep_controller(self, controller: Any) -> None:
        self._controller = controller

    def controller(self) -> Any:
        """The handle of Ray Train's controller; None before it runs."""
        return self._controller

    def join(self, rank: int, node: str, pid: int, world_size: int) -> None:
        if rank == 0:
            self.attempts += 1
            self.workers = {r: w for r, w in self.workers.items() if r < world_size and w.state == "starting"}
        self.workers[rank] = WorkerState(rank=rank, node=node, pid=pid)
        self.news.append(f"worker {rank} started on {node} (process {pid}){', again' if self.losses else ''}")

    def tell(self, rank: int, values: Mapping[str, Any]) -> bool:
        """Whether the worker is to stop."""
        if (worker := self.workers.get(rank)) is not None:
            for name, value in values.items():
                setattr(worker, name, value)
            worker.heard_at = time.time()
        return self.stopping

    def begin(self, plan: dict[str, int]) -> None:
        self.plan = plan

    def end_epoch(self, epoch: int, metrics: dict[str, float], best: bool) -> None:
        self.epochs.append({"epoch": epoch, "metrics": metrics, "best": best})

    def announce(self, text: str) -> None:
        self.news.append(text)

    def mark(self, stage: str) -> None:
        self.marks.setdefault(stage, time.time())

    def keep(self, step: int) -> None:
        """A checkpoint has reached the storage."""
        self.saved_step = max(step, self.saved_step or 0)

    def lose(self, failures: dict[int, str]) -> None:
        self.losses += 1
        for worker in self.workers.values():  # Ray Train ends the others of the group too
            worker.state = "lost"
        for rank, reason in failures.items():
            self.news.append(f"worker {rank} failed: {reason}")

    def end(self, outcome: dict[str, Any]) -> None:
        self.outcome = outcome

    def stop(self) -> None:
        self.stopping = True

    def read(self) -> Snapshot:
        """Everything, and the news since the last call."""
        epochs, self.epochs = self.epochs, []
        news, self.news = self.news, []
        return Snapshot(dict(self.workers), self.attempts, self.plan, epochs, news, self.saved_step, self.outcome, dict(self.marks))


class BoardProgress(Progress):
    """A worker's progress, written to the board at most every half second."""

    def __init__(self, board: Any, *, rank: int) -> None:
        """``board``: the actor's handle."""
        super().__init__(show=False)
        self.board, self.rank = board, rank
        self.stop_requested = False
        self._values: dict[str, Any] = {}
        self._told_at = 0.0
        self._answer: Any = None

    def join(self, *, node: str, world_size: int) -> None:
        import ray

        ray.get(self.board.join.remote(self.rank, node, os.getpid(), world_size))

    def start(self, *, steps_per_epoch: int, max_epochs: int, step: int) -> None:
        self.max_epochs = max_epochs
        if self.rank == 0:
            self.board.begin.remote({"steps_per_epoch": steps_per_epoch, "max_epochs": max_epochs, "step": step})
            self.mark("network built")
        self.tell(state="training", step=step)

    def advance(self, step: int) -> None:
        if self._told_at == 0.0:
            self.mark("first step")
        self._values["step"] = step
        self._hear()
        now = time.monotonic()
        if now - self._told_at >= _EVERY_S:
            self._told_at = now
            self.tell()

    def rate(self, images_per_s: float, loss: float) -> None:
        self._values |= {"images_per_s": images_per_s, "loss": loss}

    def epoch(self, epoch: int, metrics: Mapping[str, float], *, best: bool) -> None:
        shown = {name: float(metrics[name]) for name in ("train_loss", "val_loss", "val_accuracy", "images_per_s")}
        self.board.end_epoch.remote(epoch, shown, best)

    def calibrating(self, done: int, n: int) -> None:
        if done == 0:
            self.announce(f"calibrating: {n:,} images of val and train")

    def announce(self, text: str) -> None:
        """A line on the driver's terminal; the same on all ranks, so one says it."""
        if self.rank == 0:
            self.board.announce.remote(text)

    def stop(self) -> None:
        self.tell()

    def mark(self, stage: str) -> None:
        """Rank zero has done ``stage``."""
        if self.rank == 0:
            self.board.mark.remote(stage)

    def tell(self, **values: Any) -> None:
        """Send what is known, unless the board has not answered yet: no queue is to grow."""
        self._values |= values
        self._hear()
        if self._answer is None:
            self._answer = self.board.tell.remote(self.rank, dict(self._values))

    def _hear(self) -> None:
        """Take up the answer to what was sent, if it is there."""
        if self._answer is None:
            return
        import ray

        if ray.wait([self._answer], timeout=0)[0]:
            self.stop_requested = bool(ray.get(self._answer)) or self.stop_requested
            self._answer = None

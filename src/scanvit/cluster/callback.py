"""Runs in Ray Train's controller. Imports Ray at its top, so that nothing but the driver's last step imports it."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback


class FailureCallback(UserCallback):
    """Tells the board which workers failed."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reasons = {rank: _reason(error) for rank, error in worker_exceptions.items()}
        self.board.lose.remote(reasons)


class ControllerNote(ControllerCallback):
    """Leaves the controller's handle on the board: Ray Train keeps it to itself, and a run that is given up has to end it."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        self.board.keep_controller.remote(ray.get_runtime_context().current_actor)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]

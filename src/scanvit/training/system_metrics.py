"""Use of CPU, memory and GPU while training, under the names that MLflow's pages know."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil
import torch

from ..core.events import EventLog

_MEGABYTE = 1e6


class SystemSampler:
    """A thread that writes a sample to the event log every ``every_s`` seconds, the first one at once."""

    def __init__(self, events: EventLog, *, every_s: float, position: Callable[[], tuple[int, int]]) -> None:
        """``position`` gives the current (epoch, optimizer step)."""
        self.events, self.every_s, self.position = events, every_s, position
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        if self.every_s > 0:
            psutil.cpu_percent()  # the first call has no interval to speak of
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        self._stop.wait(0.1)  # what the first sample's CPU use is measured over
        while True:  # at least one sample, however short the run
            epoch, step = self.position()
            self.events.metrics(sample(), epoch=epoch, step=step)
            if self._stop.wait(self.every_s):
                return


def sample() -> dict[str, float]:
    """Percentages 0..100 and megabytes (1e6 bytes)."""
    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": round(memory.used / _MEGABYTE, 1),
        "system/system_memory_usage_percentage": memory.percent,
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"system/gpu_{index}_memory_usage_megabytes"] = round((total - free) / _MEGABYTE, 1)
        values[f"system/gpu_{index}_memory_usage_percentage"] = round(100 * (total - free) / total, 1)
        try:
            values[f"system/gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
        except (ModuleNotFoundError, RuntimeError):  # the vendor's library is an extra (scanvit[gpu])
            continue
    return values

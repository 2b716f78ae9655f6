"""Use of CPU, memory, disk, network and GPU while training, under the names that MLflow's page for them knows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import psutil
import torch

from ..core.events import EventLog

log = logging.getLogger(__name__)

_MEGABYTE = 1e6


class SystemSampler:
    """A thread that writes a sample to the event log every ``every_s`` seconds, the first one at once. It fails silently."""

    def __init__(self, events: EventLog, *, every_s: float, position: Callable[[], tuple[int, int]]) -> None:
        """``position`` gives the current (epoch, optimizer step)."""
        self.events, self.every_s, self.position = events, every_s, position
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        if self.every_s > 0:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        network = _network_bytes()
        psutil.cpu_percent()  # the first call of a thread has no interval to speak of, and says 0
        self._stop.wait(0.1)  # what the first sample's CPU use is measured over
        while True:  # at least one sample, however short the run
            try:
                epoch, step = self.position()
                self.events.metrics(sample(self.events.path.parent, network_start=network), epoch=epoch, step=step)
            except Exception:  # a driver that went away, a full disk: training must not hear of it from here
                log.debug("No sample of the machine's use.", exc_info=True)
            if self._stop.wait(self.every_s):
                return


def sample(folder: Path, *, network_start: tuple[int, int] = (0, 0)) -> dict[str, float]:
    """Percentages 0..100, megabytes (1e6 bytes), watts. ``folder``: whose disk; ``network_start``: bytes received and sent that do not count."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(folder)), _network_bytes()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / _MEGABYTE,
        "disk_available_megabytes": disk.free / _MEGABYTE,
        "network_receive_megabytes": (network[0] - network_start[0]) / _MEGABYTE,
        "network_transmit_megabytes": (network[1] - network_start[1]) / _MEGABYTE,
    }
    for index in range(torch.cuda.device_count()):  # those that this run sees, in its own numbering; NVIDIA's and AMD's
        values |= {f"gpu_{index}_{name}": value for name, value in gpu_sample(index).items()}
    return {f"system/{name}": round(value, 1) for name, value in values.items()}


def gpu_sample(index: int) -> dict[str, float]:
    """Memory, utilisation and power of one of PyTorch's devices, as far as its driver and the vendor's library tell.

    PyTorch asks NVIDIA's NVML (nvidia-ml-py) and AMD's amdsmi, which comes with ROCm; where that is missing, AMD's older pyrsmi is asked.
    """
    values: dict[str, float] = {}
    for reading in (_memory, _utilization_and_power, _rocm):
        try:
            for name, value in reading(index):
                values.setdefault(name, value)
        except Exception:  # each vendor has error types of its own, and a part of a GPU (MIG) may have no meter
            log.debug("No %s of GPU %s.", reading.__name__, index, exc_info=True)
    return values


def _memory(index: int) -> Iterator[tuple[str, float]]:
    free, total = torch.cuda.mem_get_info(index)
    yield "memory_usage_megabytes", (total - free) / _MEGABYTE
    yield "memory_usage_percentage", 100 * (total - free) / total


def _utilization_and_power(index: int) -> Iterator[tuple[str, float]]:
    yield "utilization_percentage", float(torch.cuda.utilization(index))
    yield "power_usage_watts", torch.cuda.power_draw(index) / 1000


def _rocm(index: int) -> Iterator[tuple[str, float]]:
    if torch.version.hip is None:
        return
    from pyrsmi import rocml

    with redirect_stdout(StringIO()):  # it prints what it cannot do
        rocml.smi_initialize()
        yield "utilization_percentage", float(rocml.smi_get_device_utilization(index))
        yield "power_usage_watts", float(rocml.smi_get_device_average_power(index))


def _network_bytes() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else (0, 0)

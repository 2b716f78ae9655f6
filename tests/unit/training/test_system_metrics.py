from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from scanvit.core.events import EventLog, read_events
from scanvit.training import system_metrics
from scanvit.training.system_metrics import SystemSampler, gpu_sample, sample


def test_the_machine_is_measured_under_mlflows_names(tmp_path: Path) -> None:
    values = sample(tmp_path)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes", "system/disk_available_megabytes"} <= values.keys()
    assert all(value >= 0 for value in values.values())
    assert 0 < values["system/system_memory_usage_percentage"] <= 100


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as PyTorch tells of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(6e9), int(8e9)))
    monkeypatch.setattr(torch.cuda, "utilization", lambda index: 40 + index)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda index: 250_000)


def test_every_gpu_of_the_run_is_measured(gpus: None, tmp_path: Path) -> None:
    values = sample(tmp_path)
    assert values["system/gpu_0_memory_usage_megabytes"] == 2000
    assert values["system/gpu_1_memory_usage_percentage"] == 25
    assert values["system/gpu_1_utilization_percentage"] == 41
    assert values["system/gpu_0_power_usage_watts"] == 250


def refuse(index: int) -> Any:
    raise type("NVMLError_NotSupported", (Exception,), {})("a part of a GPU has no meter")


def test_what_a_gpu_does_not_tell_is_left_out(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "power_draw", refuse)
    assert gpu_sample(0).keys() == {"memory_usage_megabytes", "memory_usage_percentage", "utilization_percentage"}
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert gpu_sample(0) == {}


def test_amds_older_library_is_asked_where_the_newer_one_is_missing(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rocml = ModuleType("rocml")
    rocml.smi_initialize = lambda: print("chatter")  # type: ignore[attr-defined]
    rocml.smi_get_device_utilization = lambda index: 70  # type: ignore[attr-defined]
    rocml.smi_get_device_average_power = lambda index: 180.5  # type: ignore[attr-defined]
    package = ModuleType("pyrsmi")
    package.rocml = rocml  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyrsmi", package)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert gpu_sample(0) | {"utilization_percentage": 70.0, "power_usage_watts": 180.5} == gpu_sample(0)


def test_a_failing_sample_neither_ends_the_sampler_nor_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail_once(*args: Any, **kwargs: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the driver is gone")
        return {"system/cpu_utilization_percentage": 1.0}

    monkeypatch.setattr(system_metrics, "sample", fail_once)
    sampler = SystemSampler(EventLog(tmp_path), every_s=0.01, position=lambda: (1, 2))
    sampler.start()
    while len(calls) < 3:
        time.sleep(0.01)
    sampler.stop()
    assert next(read_events(tmp_path))["values"] == {"system/cpu_utilization_percentage": 1.0}


def test_the_first_sample_has_a_use_of_the_cpu_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil says 0 at the first call of each thread, which has nothing to compare with."""
    asked: set[int] = set()

    def cpu_percent() -> float:
        is_first = threading.get_ident() not in asked
        asked.add(threading.get_ident())
        return 0.0 if is_first else 50.0

    monkeypatch.setattr(psutil, "cpu_percent", cpu_percent)
    sampler = SystemSampler(EventLog(tmp_path), every_s=60, position=lambda: (0, 0))
    sampler.start()
    while not list(read_events(tmp_path)):
        time.sleep(0.01)
    sampler.stop()
    assert next(read_events(tmp_path))["values"]["system/cpu_utilization_percentage"] == 50.0

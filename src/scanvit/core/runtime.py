"""Seeds, the process's place in the world, and a description of the machine. torch is imported only where it is asked about."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import ConfigError

_REPORTED_PACKAGES = ("scanvit", "torch", "lightning", "torchmetrics", "mlflow", "numpy", "pillow", "pyarrow", "scikit-learn", "ray")


def derive_seed(*parts: int | str) -> int:
    """A seed in 0..2**63-1 that is a stable function of its parts: the same on every machine, version and process count."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, kw_only=True)
class World:
    """Where this process stands among the processes of one run. A launcher says it by the usual environment variables."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Processes of this machine."""

    @classmethod
    def from_environment(cls) -> World:
        """Of ``torchrun`` and its like: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE. Without a launcher: one process, whatever single variable is set.

        A launcher that says nothing of the machine, such as Kubeflow's PyTorchJob, starts one process on each.
        """
        if not cls.is_launched():
            return cls()
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = os.environ.get("LOCAL_RANK")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1 if local_rank is None else world_size))
        return cls(rank=rank, local_rank=int(local_rank or 0), world_size=world_size, local_world_size=here)

    @classmethod
    def is_launched(cls) -> bool:
        """Whether a launcher started this process as one of several."""
        return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size


@contextlib.contextmanager
def importing(module: str) -> Iterator[None]:
    """For an import of hundreds of modules, ``module`` among them: the garbage collector would look again and again through all, and find nothing.

    Nothing happens where ``module`` is there already: what is freed no more is to be modules, not what a program holds later.
    """
    if module in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay: no later collection has to look at them
        if was_enabled:
            gc.enable()


def usable_cores() -> int:
    """CPU cores that this process may run on: less than the machine's inside a container or under ``taskset``."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bind_to_cores(world: World, *, threads: int) -> None:
    """Keep this process to its share of the cores, where the run's processes here, with so many threads each, take all that they may use.

    A process that is moved to another core, or has to share one with another's threads, keeps all others waiting in every step. Where cores
    are left over, other work may be bound to the same ones: there nothing is bound.
    """
    processes, cores = world.local_world_size, usable_cores()
    if not hasattr(os, "sched_setaffinity") or processes == 1 or processes * threads < cores or processes > cores:
        return
    mine = sorted(os.sched_getaffinity(0))[world.local_rank * cores // processes : (world.local_rank + 1) * cores // processes]
    for thread in Path("/proc/self/task").iterdir():  # those that carry the messages run already
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), mine)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for what it takes next. Does something under glibc alone.

    Each training step on a CPU takes and frees the same some hundred MB. glibc gives blocks of that size back at once, and the system hands
    out new pages, zeroed: two processes that do so hinder each other (docs/performance.md). The process never shrinks then; a training would
    not anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


# From malloc.h: M_TRIM_THRESHOLD never; M_TOP_PAD at least a heap's size, else those of threads are unmapped when they are empty; M_MMAP_THRESHOLD.
_MALLOC = {-1: -1, -2: 64 << 20, -3: 1 << 30}


def available_devices(accelerator: str) -> tuple[str, int]:
    """("gpu", count) or ("cpu", 1) for an accelerator setting of auto, cpu or gpu. Raises ConfigError where a GPU is asked for and none is found."""
    with importing("torch"):
        import torch

    if accelerator != "cpu" and torch.cuda.is_available():  # true for ROCm as well
        return "gpu", torch.cuda.device_count()
    if accelerator == "gpu":
        found = "PyTorch finds none" if torch.version.cuda or torch.version.hip else "this PyTorch is built for CPUs alone"
        hint = "Leave it out to train on what there is. Where nvidia-smi finds a card, scripts/install takes a PyTorch for it."
        raise ConfigError(f"trainer.accelerator is 'gpu', but {found}.", hint=hint)
    return "cpu", 1


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers by instructions of its own; without them bf16 is slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe_environment() -> dict[str, Any]:
    """Versions, devices and the code's commit: plain data for RUN/environment.json. Nothing of the process's environment variables."""
    import torch

    versions = {}
    for name in _REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "cpu_bf16": has_bf16(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "rocm": getattr(torch.version, "hip", None),
        "versions": versions,
        "git_commit": _git_commit(),
    }


def gpu_info() -> str:
    """What nvidia-smi or rocm-smi prints, or a sentence that there is neither."""
    for command in ("nvidia-smi", "rocm-smi"):
        if shutil.which(command):
            result = subprocess.run([command], capture_output=True, text=True, timeout=30, check=False)
            return result.stdout + result.stderr
    return f"No GPU tool (nvidia-smi, rocm-smi) on this machine: {platform.machine()}, {os.cpu_count()} CPU cores.\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or sys.platform


def _git_commit() -> str | None:
    """Of the checkout that this package runs from; None where it was installed without one."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()

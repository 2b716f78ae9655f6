"""What a process takes of its machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from scanvit.core.errors import ConfigError
from scanvit.core.runtime import World, available_devices

# In a process of its own: what it does lasts.
_SCRIPT = """
import json, os, resource, sys, threading
from scanvit.core.runtime import World, bind_to_cores, keep_freed_memory
values = json.loads(sys.argv[1])
stop, ready = threading.Event(), threading.Event()
def helper():
    ready.set(); stop.wait()
    seen.append(sorted(os.sched_getaffinity(0)))
seen = []
thread = threading.Thread(target=helper)
thread.start(); ready.wait()
if "world" in values:
    bind_to_cores(World(**values["world"]), threads=values["threads"])
if values.get("keep"):
    keep_freed_memory()
stop.set(); thread.join()
import numpy as np
np.ones(4 << 20); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4 << 20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({"mine": sorted(os.sched_getaffinity(0)), "helper": seen[0], "faults": faults}))
"""


def run(**values: object) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, json.dumps(values)], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def cores() -> list[int]:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, and a system that binds processes to them")
    return sorted(os.sched_getaffinity(0))


def test_processes_that_take_all_cores_share_them_out(cores: list[int]) -> None:
    bound = [run(world={"rank": rank, "local_rank": rank, "world_size": 2, "local_world_size": 2}, threads=len(cores) // 2) for rank in range(2)]
    assert sorted(bound[0]["mine"] + bound[1]["mine"]) == cores  # type: ignore[operator]
    assert all(one["helper"] == one["mine"] for one in bound), "threads that ran already too"


def test_where_cores_are_left_over_or_too_few_nothing_is_bound(cores: list[int]) -> None:
    assert run(world={"local_world_size": len(cores) + 1, "world_size": len(cores) + 1}, threads=1)["mine"] == cores
    assert run(world={"local_world_size": 1}, threads=len(cores))["mine"] == cores
    if len(cores) > 2:
        assert run(world={"local_world_size": 2, "world_size": 2}, threads=1)["mine"] == cores


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_memory_is_not_given_back() -> None:
    kept, given_back = run(keep=True), run()
    assert kept["faults"] * 10 < given_back["faults"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WORLD_SIZE": "2"}, World()),
        ({"RANK": "1"}, World()),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, World(rank=1, world_size=2)),
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            World(rank=3, local_rank=1, world_size=4, local_world_size=2),
        ),
    ],
    ids=["a size alone", "a rank alone", "one process a machine", "torchrun"],
)
def test_a_process_is_one_of_several_where_a_launcher_says_so(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: World) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment() == expected
    assert expected.num_nodes == expected.world_size // expected.local_world_size


def test_a_gpu_that_is_asked_for_and_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert available_devices("auto") == available_devices("cpu") == ("cpu", 1)
    with pytest.raises(ConfigError, match=r"trainer.accelerator is 'gpu', but") as caught:
        available_devices("gpu")
    assert caught.value.hint


def test_what_is_freed_after_the_imports_is_freed() -> None:
    """Only modules are kept from the garbage collector: a notebook that trains again and again must not keep every network."""
    code = (
        "import gc, weakref; from scanvit.core.runtime import available_devices; available_devices('cpu')\n"
        "class Cycle: pass\n"
        "one = Cycle(); one.self = one; found = weakref.ref(one); del one\n"
        "available_devices('cpu'); gc.collect(); print(found())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"

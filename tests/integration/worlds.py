"""Several real processes that form a world by gloo, each running one function of a test."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from tests.ports import free_port

from scanvit.core.runtime import World
from scanvit.training.world import join


def in_world(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 180) -> list[Any]:
    """What ``function(*args)`` returns in each process, by rank. It must stand at the top of a module."""
    port = free_port()
    context = multiprocessing.get_context("spawn")
    started = []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, rank, world_size, port, function, args))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        return [_result(rank, ours, timeout_s) for rank, (_, ours) in enumerate(started)]
    finally:
        for process, ours in started:
            process.join(5)
            process.kill()
            process.join()
            ours.close()


def _result(rank: int, connection: Connection, timeout_s: float) -> Any:
    assert connection.poll(timeout_s), f"process {rank} does not answer"
    try:
        result, trouble = connection.recv()
    except EOFError:
        raise AssertionError(f"process {rank} is gone") from None
    assert trouble is None, trouble
    return result


def _run(connection: Connection, rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    try:
        if world_size > 1:
            join(World.from_environment(), accelerator="cpu", timeout_s=60, address=("127.0.0.1", port), listen_fd=None)
        connection.send((function(*args), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))
    finally:
        connection.close()
    os._exit(0)

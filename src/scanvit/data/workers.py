"""A pool of processes that never outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any


@contextmanager
def worker_pool(workers: int, begin: Callable[..., None] | None = None, *args: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, each of which first calls ``begin(*args)``. What is still waiting is dropped when the block ends with an
    error."""
    # spawn: the caller may have threads (PyTorch's, a progress bar's), which a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(begin, args)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears the keyboard and ends the pool
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if begin is not None:
        begin(*args)


def _end_with(sentinel: int) -> None:
    """A killed parent closes no queue: without this its workers would wait for ever."""
    wait_for([sentinel])
    os._exit(1)

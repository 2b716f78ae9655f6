"""Softmax over rows of bf16 and its gradient, in place, on a CPU: a row stays in the first cache from its first pass to its last.

PyTorch's kernel takes two to three times as long for the rows of attention (docs/performance.md), most of it for exponentials that are exact
to float32. Here they are exact to 4e-6, a thousandth of what bf16 keeps; all else is float32 as well, rounded once.

The loops (``softmax_loops``) are compiled by numba once on a machine, and shared out over PyTorch's own threads, so that each works on what
lies in its cache: through libgomp, or an OpenMP library that answers to the same names, as PyTorch's builds for Linux bring it. Where there is
none, PyTorch's kernels are used.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.machine_code import MachineCode

_log = logging.getLogger(__name__)
_CODE = MachineCode("softmax", [Path(__file__).with_name("softmax_loops.py")], what="softmax of attention", takes="about 2 s")


def _compiled() -> Mapping[str, Any]:
    from .softmax_loops import SHARES

    return SHARES


@cache
def _openmp() -> tuple[Any, dict[str, int]] | None:
    """GOMP_parallel, and the addresses of the functions for its threads: "softmax" and "gradient"; None where there is no such library, or where
    numba is told to make other code than it makes by itself (NUMBA_OPT, NUMBA_DEBUGINFO)."""
    library = ctypes.CDLL(None)
    try:
        parallel = library.GOMP_parallel
        calls = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in ("omp_get_thread_num", "omp_get_num_threads")}
    except AttributeError:
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    try:
        return parallel, _CODE.addresses(("softmax", "gradient"), _compiled, calls=calls)
    except ValueError as cause:
        _log.warning("PyTorch's softmax is used, which is slower: what numba makes of ours cannot be taken from it (%s).", cause)
        return None


def softmax_(scores: Tensor) -> Tensor:
    """Over the last dimension of ``scores``, (..., N) and contiguous, which it overwrites. A row with a NaN, or whose largest score is infinite,
    becomes NaN, as in PyTorch, which does it in any type but bf16. Source: Milakov and Gimelshein 2018, algorithm 2."""
    if scores.dtype != torch.bfloat16 or (ready := _openmp()) is None:
        return torch.softmax(scores, -1, out=scores)
    parallel, shares = ready
    assert scores.is_contiguous()  # its memory is written as it lies
    each = -(-scores.shape[-1] // 16) * 16  # whole lines of the cache, at which PyTorch's memory begins
    room = scores.new_empty(torch.get_num_threads(), each, dtype=torch.float32)
    return _run(parallel, shares["softmax"], scores, room.data_ptr(), each)


def softmax_gradient_(slopes: Tensor, probs: Tensor) -> Tensor:
    """Of the scores, from the slopes of the probabilities, which it overwrites, and ``probs``: both (..., N) and contiguous."""
    if slopes.dtype != torch.bfloat16 or (ready := _openmp()) is None:
        return torch._softmax_backward_data(slopes, probs, -1, slopes.dtype, grad_input=slopes)  # a row is read before it is written
    parallel, shares = ready
    assert slopes.shape == probs.shape
    assert slopes.dtype == probs.dtype
    assert slopes.is_contiguous()
    assert probs.is_contiguous()
    return _run(parallel, shares["gradient"], slopes, probs.data_ptr())


def _run(parallel: Any, share: int, over: Tensor, *more: int) -> Tensor:
    columns = over.shape[-1]
    given = np.array([over.numel() // max(columns, 1), columns, over.data_ptr(), *more], np.int64)
    parallel(share, given.ctypes.data, torch.get_num_threads(), 0)
    return over

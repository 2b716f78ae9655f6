"""Softmax over rows of bf16 and its gradient, in place, on a CPU: a row stays in the first cache from its first pass to its last.

PyTorch's kernel takes two to three times as long for the rows of attention (docs/performance.md), most of it for exponentials that are exact
to float32. Here they are exact to 4e-6, a thousandth of what bf16 keeps; all else is float32 as well, rounded once.

The loops are compiled by numba and shared out over PyTorch's own threads, so that each works on what lies in its cache: through libgomp, or an
OpenMP library that answers to the same names, as PyTorch's builds for Linux bring it. Where there is none, PyTorch's kernels are used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import carray, extending, types  # type: ignore[attr-defined]
from torch import Tensor

from ..core.machine_code import MachineCode

_CODE = MachineCode("softmax", [Path(__file__)], what="softmax of attention", takes="about 5 s")
_LOG2_E = np.float32(np.log2(np.e))
_EXP2 = (0.006835155, 0.05321312, 0.2394306, 0.6930489, 0.999998)
"""2^f for f in (-1, 0], the highest power first; interpolated at Chebyshev's nodes, relative error below 4e-6."""
_WORD, _HALF, _FLOAT = ir.IntType(32), ir.IntType(16), ir.FloatType()


def _intrinsic(returns: Any, *takes: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of numba's from one that builds its instructions. Numba's own arithmetic on small integers is in 64 bits, a quarter of the speed."""

    def wrap(build: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, *arguments)

        # Numba reads the number of arguments from the function.
        return extending.intrinsic({1: lambda _, a: (returns(*takes), generate), 2: lambda _, a, b: (returns(*takes), generate)}[len(takes)])

    return wrap


@_intrinsic(types.float32, types.int16)
def _widened(builder: Any, bits: Any) -> Any:
    """bf16 as float32: its bits are the upper half."""
    return builder.bitcast(builder.shl(builder.zext(bits, _WORD), _WORD(16)), _FLOAT)


@_intrinsic(types.int16, types.float32)
def _rounded(builder: Any, value: Any) -> Any:
    """To bf16, to the nearest, ties to even; what is not a number stays that."""
    bits = builder.bitcast(value, _WORD)
    odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
    return builder.trunc(builder.lshr(builder.add(builder.add(bits, odd), _WORD(0x7FFF)), _WORD(16)), _HALF)


@_intrinsic(types.int16, types.int16)
def _ordered(builder: Any, bits: Any) -> Any:
    """bf16 as integers of the same order, and back: the largest of them is found twice as fast as of floats."""
    return builder.xor(bits, builder.and_(builder.ashr(bits, _HALF(15)), _HALF(0x7FFF)))


@_intrinsic(types.int16, types.int16, types.int16)
def _larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.icmp_signed(">", one, other), one, other)


@_intrinsic(types.float32, types.float32)
def _exp2(builder: Any, power: Any) -> Any:
    """2^power for power <= 0; below -126, 2^-126, which bf16 probabilities beside a 1 do not show. Not a number stays that."""
    power = builder.select(builder.fcmp_ordered("<", power, _FLOAT(-126.0)), _FLOAT(-126.0), power)
    whole = builder.fptosi(power, _WORD)
    part = builder.fsub(power, builder.sitofp(whole, _FLOAT))
    value = _FLOAT(float(np.float32(_EXP2[0])))
    for factor in _EXP2[1:]:
        value = builder.fadd(builder.fmul(value, part, flags=("contract",)), _FLOAT(float(np.float32(factor))), flags=("contract",))
    return builder.fmul(value, builder.bitcast(builder.shl(builder.add(whole, _WORD(127)), _WORD(23)), _FLOAT))


@_intrinsic(types.CPointer(types.int16), types.int64)
def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _HALF.as_pointer())


# Only sums may be taken in another order: a vector's lanes add up by themselves. The order is the same each time.
_summing = numba.njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
_plain = numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")


@_summing
def _sum(row: np.ndarray) -> np.float32:
    total = np.float32(0)
    for place in range(len(row)):
        total += row[place]
    return total


@_summing
def _dot(one: np.ndarray, other: np.ndarray) -> np.float32:
    total = np.float32(0)
    for place in range(len(one)):
        total += _widened(one[place]) * _widened(other[place])
    return total


@_plain
def _softmax(scores: np.ndarray) -> None:
    """Over each row of (R, N), bf16 as int16."""
    room = np.empty(scores.shape[1], np.float32)
    for number in range(len(scores)):
        row = scores[number]
        largest = _ordered(row[0])
        for place in range(len(row)):
            largest = _larger(largest, _ordered(row[place]))
        top = _widened(_ordered(largest))
        for place in range(len(row)):
            room[place] = _exp2((_widened(row[place]) - top) * _LOG2_E)
        share = np.float32(1) / _sum(room)
        for place in range(len(row)):
            row[place] = _rounded(room[place] * share)


@_plain
def _gradient(slopes: np.ndarray, probs: np.ndarray) -> None:
    """p (s - sum p s), over the rows of ``slopes``; (R, N) both, bf16 as int16."""
    for number in range(len(slopes)):
        row, prob = slopes[number], probs[number]
        common = _dot(row, prob)
        for place in range(len(row)):
            row[place] = _rounded(_widened(prob[place]) * (_widened(row[place]) - common))


_number: Any = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads: Any = types.ExternalFunction("omp_get_num_threads", types.int32())


@_plain
def _mine(given: np.ndarray, which: int) -> np.ndarray:
    """This thread's rows of an array: ``given`` are rows, columns, and the addresses of the arrays."""
    rows, columns = given[0], given[1]
    start, end = _number() * rows // _threads(), (_number() + 1) * rows // _threads()
    return carray(_pointer(given[2 + which]), (rows, columns))[start:end]


def _softmax_share(given: Any) -> None:
    _softmax(_mine(carray(given, 4), 0))


def _gradient_share(given: Any) -> None:
    _gradient(_mine(carray(given, 4), 0), _mine(carray(given, 4), 1))


@cache
def _openmp() -> tuple[Any, Any] | None:
    """GOMP_parallel, and the functions for its threads: of the softmax and of its gradient; None where there is no such library."""
    library = ctypes.CDLL(None)
    try:
        parallel = library.GOMP_parallel
        for name in ("omp_get_thread_num", "omp_get_num_threads"):
            binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    except AttributeError:
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    _CODE.once(_shares)
    return parallel, _shares()


@cache
def _shares() -> tuple[Any, Any]:
    compiled = _CODE.called_from_c(types.void(types.CPointer(types.int64)))
    return compiled(_softmax_share), compiled(_gradient_share)


def softmax_(scores: Tensor) -> Tensor:
    """Over the last dimension of ``scores``, (..., N) and contiguous, which it overwrites. A row with a NaN, or whose largest score is infinite,
    becomes NaN, as in PyTorch, which does it in any type but bf16. Source: Milakov and Gimelshein 2018, algorithm 2."""
    if scores.dtype != torch.bfloat16 or (ready := _openmp()) is None:
        return torch.softmax(scores, -1, out=scores)
    parallel, (softmax, _) = ready
    return _run(parallel, softmax, scores, scores)


def softmax_gradient_(slopes: Tensor, probs: Tensor) -> Tensor:
    """Of the scores, from the slopes of the probabilities, which it overwrites, and ``probs``: both (..., N) and contiguous."""
    if slopes.dtype != torch.bfloat16 or (ready := _openmp()) is None:
        return torch._softmax_backward_data(slopes, probs, -1, slopes.dtype, grad_input=slopes)  # a row is read before it is written
    parallel, (_, gradient) = ready
    return _run(parallel, gradient, slopes, probs)


def _run(parallel: Any, share: Any, over: Tensor, other: Tensor) -> Tensor:
    # Their memory is written as it lies.
    assert over.shape == other.shape
    assert over.dtype == other.dtype
    assert over.is_contiguous()
    assert other.is_contiguous()
    columns = over.shape[-1]
    given = np.array([over.numel() // max(columns, 1), columns, over.data_ptr(), other.data_ptr()], np.int64)
    parallel(share.address, given.ctypes.data, torch.get_num_threads(), 0)
    return over

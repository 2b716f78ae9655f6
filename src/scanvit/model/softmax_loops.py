"""What numba compiles for ``cpu_softmax``: the loops, and the functions for the threads. Imported only where it has to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, extending, types  # type: ignore[attr-defined]

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
def _bf16(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _HALF.as_pointer())


@_intrinsic(types.CPointer(types.float32), types.int64)
def _float32(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _FLOAT.as_pointer())


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
def _softmax(scores: np.ndarray, room: np.ndarray) -> None:
    """Over each row of (R, N), bf16 as int16. ``room``: N numbers, float32."""
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
def _bounds(rows: int) -> tuple[int, int]:
    """Of this thread's rows."""
    return _number() * rows // _threads(), (_number() + 1) * rows // _threads()


_share = numba.cfunc(types.void(types.CPointer(types.int64)))


@_share
def _softmax_share(given: Any) -> None:
    rows, columns, scores = given[0], given[1], given[2]
    room, size = given[3], given[4]  # where the threads have theirs, and how many numbers each
    start, end = _bounds(rows)
    _softmax(carray(_bf16(scores + 2 * columns * start), (end - start, columns)), carray(_float32(room + 4 * size * _number()), columns))


@_share
def _gradient_share(given: Any) -> None:
    rows, columns, slopes, probs = given[0], given[1], given[2], given[3]
    start, end = _bounds(rows)
    _gradient(carray(_bf16(slopes + 2 * columns * start), (end - start, columns)), carray(_bf16(probs + 2 * columns * start), (end - start, columns)))


SHARES = {"softmax": _softmax_share, "gradient": _gradient_share}

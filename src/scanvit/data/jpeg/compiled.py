"""What the compiled loops of the room share: how they are compiled and kept, and reading bits. Importing this imports numba (0.3 s)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.np import arrayobj

from ...core.machine_code import MachineCode

PAD_BYTES = 1024
"""Zeros that must follow a bit stream. No block of JPEG takes more: 64 symbols of at most 31 bits."""
CHECKED = bool(numba.config.BOUNDSCHECK)  # type: ignore[attr-defined]
"""Whether every access is checked (NUMBA_BOUNDSCHECK=1): slow, for tests."""
U = np.uint64
intrinsic: Any = extending.intrinsic

CODE = MachineCode("jpeg", Path(__file__).parent.glob("*.py"), what="JPEG decoder", takes="about 10 s")
compiled = CODE.compiled
"""No fast-math: all arithmetic here is on whole numbers, so every machine gives the same result."""


def _word_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    data = arrayobj.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())


@intrinsic
def _load_word(typing_context: Any, array: Any, index: Any) -> Any:
    """Eight bytes from ``index`` on, the first one the most significant. Numba has no such access; of single bytes LLVM makes it only sometimes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(builder.load(_word_pointer(context, builder, signature, arguments), align=1))

    return numba.types.uint64(array, numba.types.uint64), generate


@intrinsic
def _store_word(typing_context: Any, array: Any, index: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(builder.bswap(arguments[2]), _word_pointer(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return numba.types.void(array, numba.types.uint64, numba.types.uint64), generate


@intrinsic
def _swap(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return numba.types.uint64(numba.types.uint64), generate


def _load(array: np.ndarray, index: np.uint64) -> np.uint64:
    return _load_word(array, index)


def _store(array: np.ndarray, index: np.uint64, word: np.uint64) -> None:
    _store_word(array, index, word)


def _load_checked(array: np.ndarray, index: np.uint64) -> np.uint64:
    word = U(0)
    for place in range(8):
        word = (word << U(8)) | U(array[index + U(place)])
    return word


def _store_checked(array: np.ndarray, index: np.uint64, word: np.uint64) -> None:
    for place in range(8):
        array[index + U(place)] = np.uint8((word >> U(56 - 8 * place)) & U(255))


inlined = numba.njit(nogil=True, inline="always")
"""For small functions within the compiled ones."""
# The direct accesses ask no one whether the bytes are there; NUMBA_BOUNDSCHECK=1 takes the others, which do.
load_word = inlined(_load_checked if CHECKED else _load)
store_word = inlined(_store_checked if CHECKED else _store)


@inlined
def swapped(word: np.uint64) -> np.uint64:
    """Its bytes in the other order."""
    return _swap(word)


@inlined
def peek(stream: np.ndarray, position: np.uint64) -> np.uint64:
    """At least 57 bits from bit ``position`` on, left-aligned."""
    return load_word(stream, position >> U(3)) << (position & U(7))

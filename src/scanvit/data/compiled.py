"""What the compiled loops of ``data`` share: how they are compiled, and reading bits. Importing this imports numba (0.3 s): do it inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numba.np import arrayobj

PAD_BYTES = 1024
"""Zeros that must follow a bit stream. No block of JPEG takes more: 64 symbols of at most 31 bits."""
U = np.uint64
_3, _7 = U(3), U(7)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled at the first call and kept on disk for later processes: beside the module, in the user's cache folder or in NUMBA_CACHE_DIR.

    Releases the interpreter lock. No fast-math: all arithmetic here is on whole numbers, so every machine gives the same result.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no such folder can be written
        return numba.njit(nogil=True)(function)


@intrinsic
def _load_word(typing_context: Any, array: Any, index: Any) -> Any:
    """Eight bytes from ``index`` on, the first one the most significant. Numba has no such read; from single bytes LLVM makes it only sometimes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = arrayobj.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.bswap(builder.load(pointer, align=1))

    return numba.types.uint64(array, numba.types.uint64), generate


def _peek(stream: np.ndarray, position: np.uint64) -> np.uint64:
    """At least 57 bits from bit ``position`` on, left-aligned. Reads eight bytes without asking whether they are there."""
    return _load_word(stream, position >> _3) << (position & _7)


def _peek_checked(stream: np.ndarray, position: np.uint64) -> np.uint64:
    word = U(0)
    for place in range(8):
        word = (word << U(8)) | U(stream[(position >> _3) + U(place)])
    return word << (position & _7)


peek = numba.njit(nogil=True, inline="always")(_peek_checked if numba.config.BOUNDSCHECK else _peek)

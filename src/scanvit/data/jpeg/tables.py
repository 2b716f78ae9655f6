"""Huffman tables of JPEG (ITU-T T.81, Annex C) as lookup tables that take several symbols at once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .compiled import compiled

SHORT_BITS = 12
"""Bits that most lookups take. More find a little more at once, but the tables leave the first-level cache."""
SHORT = 1 << SHORT_BITS
FULL = 1 << 16
UNKNOWN = 0xC0
"""Entry of ``skips`` where the first code does not end within SHORT_BITS."""
EOB = 128
"""What the symbol for the end of a block advances by."""
_LOWEST = 2
_LOWEST_SHIFT = 16
_MAX_DC_SIZE = 11
_MAX_AC_SIZE = 10
"""Bits of a difference or coefficient of 8-bit samples."""


class Tables(NamedTuple):
    """Of the first component, then, where there are others, of those; each array holds all, one after the other.

    A symbol's entry is ``length of the code << 8 | symbol``, or 0 where no code begins so (or, in the short ones, where it is longer).
    """

    dc: np.ndarray
    """uint16 (n * FULL,), by the next 16 bits."""
    ac: np.ndarray
    dc_short: np.ndarray
    """uint16 (n * SHORT,), by the next SHORT_BITS bits."""
    ac_steps: np.ndarray
    """uint32 (n * SHORT,): ``length of the code << 24 | size of the coefficient << 16 | bits of both << 8 | advance``, or 0."""
    lowest: np.ndarray
    """uint32 (n * SHORT,): ``bits << 8 | advance`` as in ``skips``, of the AC symbols that lie within SHORT_BITS together with what they make, up to the
    third coefficient or the one beyond it; from bit 16 on, a signed byte each, the first two coefficients. 0 where there is no such symbol."""
    skips: np.ndarray
    """uint16 (n * 2 * SHORT,): ``bits << 8 | advance`` of all AC symbols whose codes end within SHORT_BITS, up to the end of the block, which adds EOB;
    then of the DC symbol and the AC symbols after it. UNKNOWN where the first code is longer."""


Code = bytes
"""A table as a file has it: 16 counts of codes by length, then the symbols."""


@lru_cache(maxsize=64)  # most files have the example tables of the standard
def tables(*codes: tuple[Code, Code]) -> Tables | None:
    """Of (DC, AC) for the first component and, where there are others, for those. None where a table breaks the standard, or has symbols that 8-bit
    images do not."""
    pairs = []
    for dc, ac in codes:
        full = _full(dc, largest=_MAX_DC_SIZE), _full(ac)
        if full[0] is None or full[1] is None:
            return None
        pairs.append((*full, *_short(*full)))
    return Tables(*(parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*pairs, strict=True)))


def _full(code: Code, *, largest: int | None = None) -> np.ndarray | None:
    """``largest``: of the symbols of a DC table."""
    counts, symbols = np.frombuffer(code[:16], np.uint8), np.frombuffer(code[16:], np.uint8)
    if len(code) < 17 or counts.sum() != len(symbols):
        return None
    if not all(symbol <= largest if largest else 0 < symbol & 15 <= _MAX_AC_SIZE or symbol in (0x00, 0xF0) for symbol in code[16:]):
        return None
    if sum(count << (15 - index) for index, count in enumerate(code[:16])) > FULL:
        return None  # more codes than bits
    return np.asarray(_by_next_bits(counts, symbols))


@compiled
def _by_next_bits(counts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    table = np.zeros(FULL, np.uint16)
    place = index = 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            table[place : place + (1 << (16 - length))] = length << 8 | symbols[index]
            place += 1 << (16 - length)
            index += 1
    return table


@compiled
def _short(dc, ac):
    """(dc_short, ac_steps, lowest, skips)"""
    dc_short, ac_steps = np.zeros(SHORT, np.uint16), np.zeros(SHORT, np.uint32)
    lowest, skips = np.zeros(SHORT, np.uint32), np.full(2 * SHORT, UNKNOWN, np.uint16)
    runs = _runs(ac)
    for index in range(SHORT):
        window = index << (16 - SHORT_BITS)
        length, symbol = np.int64(ac[window] >> 8), np.int64(ac[window] & 255)
        if 0 < length <= SHORT_BITS:
            ac_steps[index] = length << 24 | (symbol & 15) << 16 | (length + (symbol & 15)) << 8 | _advance(symbol)
            skips[index] = runs[SHORT + index]
            lowest[index] = _lowest(window, ac)
        length, size = np.int64(dc[window] >> 8), np.int64(dc[window] & 15)
        if 0 < length <= SHORT_BITS:
            dc_short[index] = dc[window]
            skips[SHORT + index] = _with_rest((length + size) << 8 | 1, index, SHORT_BITS, runs)
    return dc_short, ac_steps, lowest, skips


@compiled
def _runs(ac):
    """``bits << 8 | advance`` of the AC symbols in a window of n bits that reads w, at index 2 ** n + w; 0 where there is none."""
    runs = np.zeros(2 * SHORT, np.uint16)
    for bits in range(1, SHORT_BITS + 1):
        for window in range(1 << bits):
            entry = np.int64(ac[window << (16 - bits)])
            length, symbol = entry >> 8, entry & 255
            if 0 < length <= bits:
                runs[(1 << bits) + window] = _with_rest((length + (symbol & 15)) << 8 | _advance(symbol), window, bits, runs)
    return runs


@compiled
def _advance(symbol):
    return EOB if symbol == 0 else (symbol >> 4) + 1


@compiled
def _with_rest(first, window, bits, runs):
    """``first`` and what the rest of the window holds, unless a block ends between them or they would pass the last coefficient."""
    left = bits - (first >> 8)
    if left <= 0 or first & EOB:
        return first
    both = first + np.int64(runs[(1 << left) + (window & ((1 << left) - 1))])
    return first if both & 64 else both


@compiled
def _lowest(window, ac):
    left, bits, advance, values = SHORT_BITS, 0, 0, 0
    while left > 0 and advance < _LOWEST:
        entry = np.int64(ac[window & (FULL - 1)])
        length, symbol = entry >> 8, entry & 255
        size = symbol & 15
        if length == 0 or length + size > left:
            break
        place = advance + (symbol >> 4)
        if size and place < _LOWEST:
            if size > 7:
                break  # more than a byte
            value = (window << length & (FULL - 1)) >> (16 - size)
            value -= 0 if value >> (size - 1) else (1 << size) - 1
            values |= (value & 255) << (8 * place)
        advance += _advance(symbol)
        window, left, bits = window << (length + size), left - length - size, bits + length + size
    return values << _LOWEST_SHIFT | bits << 8 | advance

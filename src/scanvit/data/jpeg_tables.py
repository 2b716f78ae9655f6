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
LOWEST = 5
LOWEST_SHIFT = 24
EOB = 128
"""What the symbol for the end of a block advances by."""
_MAX_DC_SIZE = 11
_MAX_AC_SIZE = 10
"""Bits of a difference or coefficient of 8-bit samples."""


class Tables(NamedTuple):
    """Of the first component, then of the other two; each array holds both, one after the other.

    A symbol's entry is ``length of the code << 8 | symbol``, or 0 where no code begins so (or, in the short ones, where it is longer).
    """

    dc: np.ndarray
    """uint16 (2 * FULL,), by the next 16 bits."""
    ac: np.ndarray
    dc_short: np.ndarray
    """uint16 (2 * SHORT,), by the next SHORT_BITS bits."""
    ac_steps: np.ndarray
    """uint32 (2 * SHORT,): ``length of the code << 24 | size of the coefficient << 16 | bits of both << 8 | advance``, or 0."""
    lowest: np.ndarray
    """uint64 (2 * SHORT,): ``bits << 8 | advance`` as in ``skips``, of the AC symbols that lie within SHORT_BITS together with their coefficients; from bit
    LOWEST_SHIFT on, a signed byte each, the first LOWEST coefficients that they make. 0 where there is no such symbol."""
    skips: np.ndarray
    """uint16 (4 * SHORT,): ``bits << 8 | advance`` of all AC symbols whose codes end within SHORT_BITS, up to the end of the block, which adds EOB; then of
    the DC symbol; then both of the other components. UNKNOWN where the first code is longer."""


Code = bytes
"""A table as a file has it: 16 counts of codes by length, then the symbols."""


@lru_cache(maxsize=64)  # most files have the example tables of the standard
def tables(first_dc: Code, first_ac: Code, other_dc: Code, other_ac: Code) -> Tables | None:
    """None where a table breaks the standard, or has symbols that 8-bit baseline images do not."""
    codes = (first_dc, other_dc), (first_ac, other_ac)
    dc = [_full(code) for code in codes[0] if all(symbol <= _MAX_DC_SIZE for symbol in code[16:])]
    ac = [_full(code) for code in codes[1] if all(_is_ac(symbol) for symbol in code[16:])]
    full = [table for table in (*dc, *ac) if table is not None]
    if len(full) < 4:
        return None
    dc_short = [_short(table) for table in full[:2]]
    ac_steps = [_steps(_short(table)) for table in full[2:]]
    lowest = [_lowest(table) for table in full[2:]]
    skips = [part for index in range(2) for part in (_skips(full[2 + index]), _dc_skips(dc_short[index]))]
    return Tables(*map(np.concatenate, (full[:2], full[2:], dc_short, ac_steps, lowest, skips)))


def _is_ac(symbol: int) -> bool:
    return 0 < symbol & 15 <= _MAX_AC_SIZE or symbol in (0x00, 0xF0)


def _full(code: Code) -> np.ndarray | None:
    counts, symbols = np.frombuffer(code[:16], np.uint8), np.frombuffer(code[16:], np.uint8)
    if len(code) < 17 or counts.sum() != len(symbols):
        return None
    lengths = np.repeat(np.arange(1, 17), counts)
    spans = 1 << (16 - lengths)
    if (used := int(spans.sum())) > FULL:
        return None  # more codes than bits
    table = np.zeros(FULL, np.uint16)
    table[:used] = np.repeat((lengths << 8 | symbols).astype(np.uint16), spans)
    return table


def _short(full: np.ndarray) -> np.ndarray:
    entries = full[:: FULL // SHORT]
    return np.where(entries >> 8 <= SHORT_BITS, entries, 0).astype(np.uint16)


def _steps(short: np.ndarray) -> np.ndarray:
    entries = short.astype(np.uint32)
    length, size, symbol = entries >> 8, entries & 15, entries & 255
    advance = np.where(symbol == 0, EOB, (symbol >> 4) + 1)
    return np.where(entries == 0, 0, length << 24 | size << 16 | (length + size) << 8 | advance).astype(np.uint32)


def _dc_skips(short: np.ndarray) -> np.ndarray:
    return np.where(short == 0, UNKNOWN, ((short >> 8) + (short & 15)) << 8 | 1).astype(np.uint16)


@compiled
def _skips(full: np.ndarray) -> np.ndarray:
    table = np.full(SHORT, UNKNOWN, np.uint16)
    for index in range(SHORT):
        window, left, bits, advance = index << (16 - SHORT_BITS), SHORT_BITS, 0, 0
        while left > 0 and advance < 64:
            entry = np.int64(full[window & (FULL - 1)])
            length, symbol = entry >> 8, entry & 255
            if length == 0 or length > left:
                break
            used = length + (symbol & 15)
            window, left, bits = window << used, left - used, bits + used
            advance += EOB if symbol == 0 else (symbol >> 4) + 1
        if bits:
            table[index] = bits << 8 | advance
    return table


@compiled
def _lowest(full: np.ndarray) -> np.ndarray:
    table = np.zeros(SHORT, np.uint64)
    for index in range(SHORT):
        window, left, bits, advance, values = index << (16 - SHORT_BITS), SHORT_BITS, 0, 0, 0
        while left > 0 and advance < 64:
            entry = np.int64(full[window & (FULL - 1)])
            length, symbol = entry >> 8, entry & 255
            size = symbol & 15
            if length == 0 or length + size > left:
                break
            advance += EOB if symbol == 0 else (symbol >> 4) + 1
            if size and advance <= LOWEST:
                value = (window << length & (FULL - 1)) >> (16 - size)
                value -= 0 if value >> (size - 1) else (1 << size) - 1
                values |= (value & 255) << (8 * (advance - 1))
            window, left, bits = window << (length + size), left - length - size, bits + length + size
        table[index] = values << LOWEST_SHIFT | bits << 8 | advance
    return table

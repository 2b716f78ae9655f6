"""The entropy-coded bits of a baseline JPEG: where each block begins, and the lowest coefficients of each.

libjpeg reads every coefficient. For a picture that is to become small, few are wanted, so all bits are only skipped first, several symbols a
lookup, to find where the blocks begin; the lowest coefficients are then read there. Skipping is one chain of dependent lookups, and a
processor idles through most of it; so several cursors skip at once, each from a place of its own. All but the first begin at a guess, in the middle
of anything. Huffman codes synchronise themselves: after a few blocks a cursor most likely goes on at true beginnings of blocks, and it is
taken at its word only from where the cursor before it comes to the very same place; where they never meet, the one before goes on.
So guesses cost time at worst. (The idea: Klein and Wiseman, Parallel Huffman decoding, The Computer Journal 46, 2003.)

A cursor's state is ``bit position << 8 | k``; k is the coefficient's index in zigzag order, 64 or 128 to 191 at the end of a block. Places
of blocks are ``bit position << 4 | index of the block in its minimum coded unit``.
"""

from __future__ import annotations

import numpy as np

from .compiled import U, compiled, peek
from .jpeg_tables import FULL, SHORT, SHORT_BITS, UNKNOWN

CURSORS = 8
"""Measured: 1 takes twice the time of 8, 4 a sixth more, 12 no less."""
_MIN_BITS = 16_384
"""Less is not worth another cursor."""
_FULL, _SHORT, _SHIFT = U(FULL), U(SHORT), U(64 - SHORT_BITS)
_UNKNOWN, _ENDS, _ODD, _K, _EOB = U(UNKNOWN), U(0xC0), U(0x40), U(0xFF), U(128)
_0, _1, _4, _8, _15, _48, _63, _64, _256 = U(0), U(1), U(4), U(8), U(15), U(48), U(63), U(64), U(256)


@compiled
def _skip_dc(stream, position, table, dc, dc_short):
    """The position after a difference; the same one where there is no such code."""
    word = peek(stream, position)
    entry = U(dc_short[table * _SHORT + (word >> _SHIFT)])
    if entry == _0:
        entry = U(dc[table * _FULL + (word >> _48)])
    return position + (entry >> _8) + (entry & _15)


@compiled
def _skip_block(stream, position, table, dc, dc_short, ac):
    """The position after a whole block, one symbol at a time; 0 where the block is damaged."""
    start = position
    position = _skip_dc(stream, start, table, dc, dc_short)
    if position == start:
        return _0
    k = _1
    while k < _64:
        entry = U(ac[table * _FULL + (peek(stream, position) >> _48)])
        if entry == _0:
            return _0
        position += (entry >> _8) + (entry & _15)
        k += _EOB if entry & _K == _0 else ((entry >> _4) & _15) + _1
    return position if k == _64 or k >= _EOB else _0


@compiled
def _skip_together(stream, begins, end, logs, unit, dc, dc_short, ac, skips):
    """Skip from each of the places ``begins`` to the next (the last one to ``end``), and log where blocks begin, the first one past the range
    included. Returns the numbers of logged places, and of those that a damaged block precedes."""
    cursors, capacity = logs.shape
    state, lengths, damaged = np.empty(cursors, np.uint64), np.empty(cursors, np.int64), np.zeros(cursors, np.int64)
    blocks, tables = np.zeros(cursors, np.int64), np.empty(cursors, np.uint64)
    limits = np.append(begins[1:], end)
    active = np.arange(cursors).astype(np.uint64)
    for c in range(cursors):
        logs[c, 0], lengths[c], tables[c] = begins[c] << _4, 1, unit[0] * _SHORT
        after = _skip_dc(stream, begins[c], unit[0], dc, dc_short)
        state[c] = (after << _8) | _1
        if after == begins[c]:
            state[c] += _256
            damaged[c] = 1
    running = cursors
    while running > 0:
        for index in range(running):
            c = active[index]
            s = state[c]
            table = tables[c]
            word = peek(stream, s >> _8)
            entry = U(skips[table + (word >> _SHIFT)])
            s += entry
            if not s & _ENDS:
                # 57 bits hold two lookups: the first takes at most SHORT_BITS and a last coefficient's 10 bits.
                entry = U(skips[table + ((word << ((entry >> _8) & _63)) >> _SHIFT)])
                s += entry
            if s & _ENDS:
                place = s >> _8
                length = lengths[c]
                if s & _ODD:
                    if entry == _UNKNOWN:
                        symbol = U(ac[table * U(FULL // SHORT) + (peek(stream, place) >> _48)])
                        s += ((symbol >> _8) + (symbol & _15)) << _8
                        s += (_EOB if symbol & _K == _0 else ((symbol >> _4) & _15) + _1) - _UNKNOWN
                        if not s & _ENDS and symbol != _0:
                            state[c] = s
                            continue
                        place = s >> _8
                    if entry == _UNKNOWN or s & _K != _64:
                        # The lookup went past the last coefficient, or the code is unknown: once more, with care.
                        start = logs[c, length - 1] >> _4
                        place = _skip_block(stream, start, table // _SHORT, dc, dc_short, ac)
                        if place == _0:
                            damaged[c] = length
                            place = start + _1
                block = blocks[c] + 1
                block = 0 if block == unit.size else block
                logs[c, length] = (place << _4) | U(block)
                length += 1
                lengths[c], blocks[c] = length, block
                if place >= limits[c] or length == capacity:
                    running -= 1
                    active[index] = active[running]
                    break
                tables[c] = unit[block] * _SHORT
                after = _skip_dc(stream, place, unit[block], dc, dc_short)
                s = (after << _8) | _1
                if after == place:  # no such code: go on a bit later, but trust only what follows this block
                    s += _256
                    damaged[c] = length
            state[c] = s
    return lengths, damaged


@compiled
def find_blocks(stream, begin, end, unit, places, dc, dc_short, ac, skips):
    """Where blocks begin, of the first of a minimum coded unit at bit ``begin`` and all after it, into uint64 ``places``: one more than there are blocks,
    as the last is where the bits end. ``unit`` has the table (0 or 1) of each block of a unit. The stream goes on for PAD_BYTES after bit ``end``.
    Returns whether the bits hold exactly so many blocks."""
    cursors = min(CURSORS, max(1, (end - begin) // _MIN_BITS))
    begins = np.empty(cursors, np.uint64)
    for c in range(cursors):
        begins[c] = begin + c * (end - begin) // cursors
    logs = np.empty((cursors, places.size + 1), np.uint64)
    lengths, damaged = _skip_together(stream, begins, U(end), logs, unit, dc, dc_short, ac, skips)
    count, place = 0, logs[0, 0]
    for c in range(cursors):
        until = (U(end) if c == cursors - 1 else begins[c + 1]) << _4
        entry = 0
        while place < until and count < places.size:
            while entry < lengths[c] and logs[c, entry] < place:
                entry += 1
            if entry < lengths[c] and logs[c, entry] == place and entry >= damaged[c]:
                copied = min(lengths[c] - 1 - entry, places.size - count)
                places[count : count + copied] = logs[c, entry : entry + copied]
                count += copied
                place = logs[c, entry + copied]
                break
            places[count] = place
            count += 1
            block = place & _15
            after = _skip_block(stream, place >> _4, unit[block], dc, dc_short, ac)
            if after == _0:
                return False
            block += _1
            place = (after << _4) | (_0 if block == U(unit.size) else block)
    if count < places.size:
        places[count] = place
        count += 1
    last = np.int64(places[-1] >> _4)
    return count == places.size and places[-1] & _15 == _0 and end - 8 < last <= end


@compiled
def _value(word, entry):
    """The signed number that follows a code (T.81, F.2.2.1)."""
    size = entry & _15
    bits = word << (entry >> _8)
    value = np.int64((bits >> _1) >> (_63 - size))
    return value if np.int64(bits) < 0 else value - (np.int64(1) << np.int64(size)) + 1


@compiled
def read_coefficients(stream, places, unit_blocks, first, across, down, columns, restart, steps, wanted, table, dc, dc_short, ac, ac_short, out):
    """The lowest coefficients, in zigzag order, of the blocks of one component into int32 ``out`` (wanted, columns * across, rows * down), zeros before,
    multiplied by their quantization ``steps``. In each unit of ``unit_blocks`` blocks, ``across`` times ``down`` from ``first`` on are its own.
    Returns whether all differences were plausible."""
    plane, height = U(out.shape[1] * out.shape[2]), out.shape[2]
    flat = out.reshape(-1)
    prediction, limit = 0, U(wanted)
    dc_base, ac_base, dc_short_base, ac_short_base = table * _FULL, table * _FULL, table * _SHORT, table * _SHORT
    unit, left, top = 0, 0, 0
    for start in range(first, places.size - 1, unit_blocks):
        if restart and unit == restart:
            prediction, unit = 0, 0
        for block in range(across * down):
            position = places[start + block] >> _4
            word = peek(stream, position)
            entry = U(dc_short[dc_short_base + (word >> _SHIFT)])
            if entry == _0:
                entry = U(dc[dc_base + (word >> _48)])
            prediction += _value(word, entry)
            if not -32768 < prediction < 32768:
                return False
            position += (entry >> _8) + (entry & _15)
            target = U((left + block % across) * height + top + block // across)
            flat[target] = np.int32(prediction * steps[0])
            k = _1
            while k < limit:
                word = peek(stream, position)
                entry = U(ac_short[ac_short_base + (word >> _SHIFT)])
                if entry == _0:
                    entry = U(ac[ac_base + (word >> _48)])
                if entry & _K == _0:
                    break
                k += (entry >> _4) & _15
                position += (entry >> _8) + (entry & _15)
                if k < limit and entry & _15 != _0:
                    flat[target + k * plane] = np.int32(_value(word, entry) * steps[k])
                k += _1
        unit += 1
        left += across
        if left == columns * across:
            left, top = 0, top + down
    return True

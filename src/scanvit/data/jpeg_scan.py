"""The entropy-coded bits of a baseline JPEG: where each block begins, and the lowest coefficients of each.

libjpeg reads every coefficient. For a picture that is to become small, few are wanted, so all bits are only skipped first, several symbols a
lookup, to find where the blocks begin; the lowest coefficients are then read there. Skipping is one chain of dependent lookups, and a
processor idles through most of it; so several cursors skip at once, each from a place of its own. All but the first begin at a guess, in the middle
of anything. Huffman codes synchronise themselves: after a few blocks a cursor most likely goes on at true beginnings of blocks, and it is
taken at its word only from where the cursor before it comes to the very same place; where they never meet, the one before goes on.
So guesses cost time at worst. (The idea: Klein and Wiseman, Parallel Huffman decoding, The Computer Journal 46, 2003.)

A cursor's state is ``bit position << 8 | k``; k is the index of the next coefficient in zigzag order, 0 for the difference that a block begins with.
Past the last it is 64, or 128 to 191 after an end-of-block code.
"""

from __future__ import annotations

import numpy as np

from .compiled import PAD_BYTES, U, compiled, inlined, load_word, peek, store_word
from .jpeg_tables import EOB, FULL, LOWEST, LOWEST_SHIFT, SHORT, SHORT_BITS, UNKNOWN

CURSORS = 8
"""Measured: 1 takes twice the time of 8, 4 a sixth more, 12 no less."""
_MIN_BITS = 16_384
"""Less is not worth another cursor."""
_ROUND = 16
"""Visits of each cursor before the next look at who has arrived. At most 46 bits a visit: PAD_BYTES holds what is read past the end."""
_FULL, _SHORT, _PAIR, _SHIFT = U(FULL), U(SHORT), U(2 * SHORT), U(64 - SHORT_BITS)
_UNKNOWN, _ENDS, _ODD, _K, _EOB = U(UNKNOWN), U(0xC0), U(0x40), U(0xFF), U(EOB)
_0, _1, _3, _4, _6, _7, _8, _15, _32, _48, _63, _64, _256 = U(0), U(1), U(3), U(4), U(6), U(7), U(8), U(15), U(32), U(48), U(63), U(64), U(256)
_16, _24, _STEP = U(16), U(24), U(0x3FFF)
_LOWEST_SHIFT, _SHORT_LIMIT = U(LOWEST_SHIFT), U(LOWEST + 1)
_EACH_1, _EACH_80 = U(0x0101010101010101), U(0x8080808080808080)


@compiled
def take_bits(data, start, stream, ends):
    """Copy the scan at byte ``start`` into ``stream`` without stuffed zeros and markers, PAD_BYTES zeros after it; into ``ends`` the byte after
    each segment between restart markers. Returns whether there are exactly so many, in order, and the end of the image after the last."""
    size, place, count, segments = U(data.size), U(start), _0, 0
    while True:
        while place + _8 <= size:
            word = load_word(data, place)
            if (~word - _EACH_1) & word & _EACH_80:  # perhaps one of the bytes is 0xFF
                break
            store_word(stream, count, word)
            place += _8
            count += _8
        for _ in range(8):
            if place + _1 >= size:
                return False
            value = data[place]
            place += _1
            if value == 0xFF:
                follower = data[place]
                place += _1
                if follower != 0:
                    ends[segments] = count
                    segments += 1
                    if segments == ends.size:
                        stream[count : count + U(PAD_BYTES)] = 0
                        return follower == 0xD9
                    if follower != 0xD0 + (segments - 1) % 8:
                        return False
                    continue
            stream[count] = value
            count += _1


@compiled
def _skip_symbols(stream, s, most, kind, dc, ac):
    """The state after ``most`` symbols, or at the end of their block; 0 where that is damaged."""
    for _ in range(most):
        window = kind * _FULL + (peek(stream, s >> _8) >> _48)
        first = s & _K == _0
        entry = U(dc[window] if first else ac[window])
        if entry == _0:
            return _0
        s += ((entry >> _8) + (entry & _15)) << _8
        s += _1 if first else (_EOB if entry & _K == _0 else ((entry >> _4) & _15) + _1)
        if s & _ENDS:
            return _0 if s & _K > _64 and s & _K < _EOB else s
    return s


@compiled
def _skip_together(stream, begins, limits, logs, unit, dc, ac, skips):
    """Skip from each of the bits ``begins`` to that of ``limits`` or a little further, and log where blocks begin, as states, each cursor in its part of
    ``logs``. Returns the index of the last log of each, and of its first log that no damaged block comes after."""
    cursors, several = begins.size, U(unit.size)
    capacity = U(logs.size // cursors)
    names = np.arange(cursors).astype(np.uint64)
    states, tips, limits = begins << _8, names * capacity, limits << _8
    stops, last, damaged = tips + (capacity - U(_ROUND + 1)), tips.copy(), tips.copy()
    bases = np.full(cursors, unit[0] * _PAIR)
    tables = bases + _SHORT
    blocks = np.zeros(cursors, np.uint64)
    for c in range(cursors):
        logs[tips[c]] = states[c]
    running = cursors
    while running > 0:
        for _ in range(_ROUND):
            for c in range(running):
                s, tip, base = states[c], tips[c], bases[c]
                word = peek(stream, s >> _8)
                entry = U(skips[tables[c] + (word >> _SHIFT)])
                s += entry
                passed = s
                # 57 bits hold two lookups: the first takes at most SHORT_BITS and 11 bits of a difference. Nothing is added after an end.
                entry = U(skips[base + ((word << ((entry >> _8) & _63)) >> _SHIFT)])
                s += entry & (((s >> _6) & _3) - _1) >> _32
                if (s | passed) & _ODD:
                    # A code that the short table does not know, the last coefficient, or a lookup past it.
                    if s & _K != _64:
                        s = _skip_symbols(stream, states[c], 8, base // _PAIR, dc, ac)
                        if s == _0:
                            damaged[names[c]] = tip + _1
                            s = ((logs[tip] >> _8 << _8) + _256) | _EOB  # a bit later
                    if s & _K == _64:
                        s += _64
                logs[tip + _1] = s
                end = (s >> _7) & _1
                tips[c] = tip + end
                states[c] = s & ~((_0 - end) & _K)
                tables[c] = base + end * _SHORT
                if several > _1 and end:
                    block = blocks[c] + _1
                    blocks[c] = _0 if block == several else block
                    bases[c] = unit[blocks[c]] * _PAIR
                    tables[c] = bases[c] + _SHORT
        for c in range(running - 1, -1, -1):
            if states[c] >= limits[c] or tips[c] >= stops[c]:
                last[names[c]] = tips[c]
                running -= 1
                for values in (states, tips, limits, stops, bases, tables, blocks, names):
                    values[c] = values[running]
    return last, damaged


def log_size(places: int) -> int:
    """Of the uint64 array that ``find_blocks`` works in."""
    return CURSORS * (places + 2 * _ROUND)


@compiled
def find_blocks(stream, begin, end, unit, places, logs, dc, ac, skips):
    """Where blocks begin, of the first of a minimum coded unit at bit ``begin`` and all after it, into uint64 ``places``: one more than there are blocks,
    as the last is where the bits end. ``unit`` has the kind of each block of a unit: 0, or 1 for the other components. The stream goes on for
    PAD_BYTES after bit ``end``; ``logs`` is memory of ``log_size(places.size)``. Returns whether the bits hold exactly so many blocks."""
    cursors = min(CURSORS, max(1, (end - begin) // _MIN_BITS))
    bounds = np.empty(cursors + 1, np.uint64)
    for c in range(cursors + 1):
        bounds[c] = begin + c * (end - begin) // cursors
    wanted, several = U(places.size), U(unit.size)
    capacity = wanted + U(2 * _ROUND)
    logs = logs[: U(cursors) * capacity]
    lasts, damaged = _skip_together(stream, bounds[:-1], bounds[1:], logs, unit, dc, ac, skips)
    count, place = _0, U(begin)
    for c in range(cursors):
        start, last = U(c) * capacity, lasts[c]
        entry = max(start, damaged[c])
        while place < bounds[c + 1] and count < wanted:
            while entry <= last and logs[entry] >> _8 < place:
                entry += _1
            if entry <= last and logs[entry] >> _8 == place and (entry - start) % several == count % several:
                copied = min(last - entry, wanted - count)
                for index in range(copied):
                    places[count + U(index)] = logs[entry + U(index)] >> _8
                count += copied
                place = logs[entry + copied] >> _8
                break
            places[count] = place
            s = _skip_symbols(stream, place << _8, 64, unit[count % several], dc, ac)
            if not s & _ENDS:
                return False
            count += _1
            place = s >> _8
    if count < wanted:
        places[count] = place
        count += _1
    return count == wanted and end - 8 < np.int64(places[wanted - _1]) <= end


@inlined
def _value(word, length, size):
    """The signed number that follows a code (T.81, F.2.2.1). No branch: signs cannot be foretold."""
    bits = word << length
    negative = ~(np.int64(bits) >> 63)
    return np.int64((bits >> _1) >> (_63 - size)) - (((1 << np.int64(size)) - 1) & negative)


@inlined
def _read_one(word, full, short, ac, ac_steps):
    """(what an AC symbol adds to the state, its coefficient or 0)."""
    entry = U(ac_steps[short + (word >> _SHIFT)])
    if entry == _0:
        symbol = U(ac[full + (word >> _48)])
        length, size = symbol >> _8, symbol & _15
        entry = length << _24 | size << _16 | (length + size) << _8 | (_EOB if symbol & _K == _0 else ((symbol >> _4) & _15) + _1)
    return entry & _STEP, _value(word, entry >> _24, (entry >> _16) & _15)


@compiled
def _read_row(stream, states, targets, active, limit, plane, table, ac, ac_steps, flat):
    """The coefficients up to ``limit`` of the blocks of a row, whose differences have been read; what is past it lands in the last plane."""
    full, short, count = U(table * FULL), U(table * SHORT), states.size
    while count > 0:
        kept = _0
        for index in range(count):
            block = active[index]
            step, value = _read_one(peek(stream, states[block] >> _8), full, short, ac, ac_steps)
            s = states[block] + step
            states[block] = s
            flat[targets[block] + min((s & _K) - _1, limit) * plane] = value
            active[kept] = block
            kept += U(s & _K < limit)
        count = np.int64(kept)


@compiled
def _read_row_short(stream, states, targets, active, values, limit, plane, table, ac, ac_steps, lowest, flat):
    """The same where ``limit`` is at most LOWEST + 1: mostly several symbols a lookup."""
    full, short, count = U(table * FULL), U(table * SHORT), states.size
    while count > 0:
        kept = _0
        for index in range(count):
            block = active[index]
            s = states[block]
            word = peek(stream, s >> _8)
            entry = lowest[short + (word >> _SHIFT)]
            if entry == _0:
                step, value = _read_one(word, full, short, ac, ac_steps)
                s += step
                flat[targets[block] + min((s & _K) - _1, limit) * plane] = value
            else:
                values[block] |= (entry >> _LOWEST_SHIFT) << ((_8 * (s & _K) - _8) & _63)
                s += entry & _STEP
            states[block] = s
            active[kept] = block
            kept += U(s & _K < limit)
        count = np.int64(kept)
    for k in range(1, limit):
        for block in range(states.size):
            flat[targets[block] + U(k) * plane] += np.int8((values[block] >> U(8 * k - 8)) & _K)


@compiled
def read_coefficients(stream, places, unit_blocks, first, across, down, columns, restart, wanted, table, dc, dc_short, ac, ac_steps, lowest, out):
    """The lowest coefficients, in zigzag order, of the blocks of one component, into int16 ``out`` (wanted + 1, rows * down, columns * across), zeros before;
    what lands in its last plane means nothing. In each unit of ``unit_blocks`` blocks, ``across`` times ``down`` from ``first`` on are its own.
    Returns whether all differences were plausible.

    A row of units is read together, one lookup of each block in turn: a processor looks ahead too little to begin the next block before one is
    done. For the same reason there are few branches that cannot be foretold.
    """
    plane, width, flat = U(out.shape[1] * out.shape[2]), U(out.shape[2]), out.reshape(-1)
    limit, full, short = U(wanted), U(table * FULL), U(table * SHORT)
    size = columns * across * down
    states, targets = np.empty(size, np.uint64), np.empty(size, np.uint64)
    active, values = np.empty(size + 1, np.uint64), np.empty(size, np.uint64)
    prediction, unit = 0, 0
    for row in range(out.shape[1] // down):
        count = _0
        for column in range(columns):
            if restart and unit == restart:
                prediction, unit = 0, 0
            unit += 1
            block = U((row * columns + column) * unit_blocks + first)
            for y in range(down):
                for x in range(across):
                    position = places[block]
                    word = peek(stream, position)
                    entry = U(dc_short[short + (word >> _SHIFT)])
                    if entry == _0:
                        entry = U(dc[full + (word >> _48)])
                    prediction += _value(word, entry >> _8, entry & _15)
                    if not -32768 < prediction < 32768:
                        return False
                    target = U(row * down + y) * width + U(column * across + x)
                    flat[target] = prediction
                    states[count], targets[count] = ((position + (entry >> _8) + (entry & _15)) << _8) | _1, target
                    active[count], values[count] = count, _0
                    block += _1
                    count += _1
        if limit > _1 and limit <= _SHORT_LIMIT:
            _read_row_short(stream, states, targets, active, values, limit, plane, table, ac, ac_steps, lowest, flat)
        elif limit > _1:
            _read_row(stream, states, targets, active, limit, plane, table, ac, ac_steps, flat)
    return True

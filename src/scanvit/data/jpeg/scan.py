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
from .tables import EOB, FULL, SHORT, SHORT_BITS, UNKNOWN

CURSORS = 6
"""Measured: 1 takes twice the time of 6; 8 and 12 no less."""
_MIN_BITS = 16_384
"""Less is not worth another cursor."""
_ROUND = 16
"""Visits of each cursor before the next look at who has arrived. At most 46 bits a visit: PAD_BYTES holds what is read past the end."""
_FULL, _SHORT, _PAIR, _SHIFT = U(FULL), U(SHORT), U(2 * SHORT), U(64 - SHORT_BITS)
_UNKNOWN, _ENDS, _ODD, _K, _EOB = U(UNKNOWN), U(0xC0), U(0x40), U(0xFF), U(EOB)
_0, _1, _3, _4, _6, _7, _8, _15, _32, _48, _63, _64, _256 = U(0), U(1), U(3), U(4), U(6), U(7), U(8), U(15), U(32), U(48), U(63), U(64), U(256)
_16, _24, _STEP = U(16), U(24), U(0xFFF)
_AC_STEP, _VALUES = U(0x3FFF), U(0xFFFF0000)
_EACH_1, _EACH_80 = U(0x0101010101010101), U(0x8080808080808080)


_NEGATIVE = np.array([(1 << size) - 1 for size in range(16)] + [0] * 16, np.int64)
"""What is taken from the bits of a number, by its first bit and their count."""
_PLACES = np.array([0, 0, 8] + [32] * 253, np.uint64)
"""By how much a byte is shifted that belongs to a coefficient; out of what is kept where it is none of the lowest."""


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
    stops, last, damaged = tips + (capacity - U(3 * _ROUND + 1)), tips.copy(), tips.copy()
    bases = np.full(cursors, unit[0] * _PAIR)
    tables = bases + _SHORT
    blocks = np.zeros(cursors, np.uint64)
    for c in range(cursors):
        logs[tips[c]] = states[c]
    running = cursors
    while running > 0:
        for _ in range(_ROUND):
            for c in range(running):
                s, tip, table, base, block = states[c], tips[c], tables[c], bases[c], blocks[c]
                word = peek(stream, s >> _8)
                # 57 bits hold three lookups: a difference takes at most SHORT_BITS and 11 bits, the coefficients after it SHORT_BITS and 10.
                odd = _0
                for _ in range(3):
                    entry = U(skips[table + (word >> _SHIFT)])
                    word <<= (entry >> _8) & _63
                    s += entry
                    odd |= s
                    logs[tip + _1] = s
                    end = (s >> _7) & _1
                    tip += end
                    s &= ~((_0 - end) & _K)
                    if several > _1:
                        block += end
                        block = _0 if block == several else block
                        base = unit[block] * _PAIR
                    table = base + end * _SHORT
                if odd & _ODD:
                    # A code that the short table does not know, the last coefficient, or a lookup past it: again, symbol by symbol.
                    tip, block = tips[c], blocks[c]
                    s = _skip_symbols(stream, states[c], 8, unit[block], dc, ac)
                    if s == _0:
                        damaged[names[c]] = tip + _1
                        s = ((logs[tip] >> _8 << _8) + _256) | _EOB  # a bit later
                    logs[tip + _1] = s
                    end = _1 if s & _ENDS else _0
                    tip += end
                    s &= ~((_0 - end) & _K)
                    block += end
                    block = _0 if block == several else block
                    base = unit[block] * _PAIR
                    table = base + (_SHORT if s & _K == _0 else _0)
                states[c], tips[c], tables[c], bases[c], blocks[c] = s, tip, table, base, block
        for c in range(running - 1, -1, -1):
            if states[c] >= limits[c] or tips[c] >= stops[c]:
                last[names[c]] = tips[c]
                running -= 1
                for values in (states, tips, limits, stops, bases, tables, blocks, names):
                    values[c] = values[running]
    return last, damaged


def log_size(places: int) -> int:
    """Of the uint64 array that ``find_blocks`` works in."""
    return CURSORS * (places + 4 * _ROUND)


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
    capacity = wanted + U(4 * _ROUND)
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
    """The signed number that follows a code (T.81, F.2.2.1). By a table, since the compiler would make a branch, and signs cannot be foretold."""
    bits = word << length
    return np.int64((bits >> _1) >> (_63 - size)) - _NEGATIVE[((bits >> _63) << _4) + size]


@inlined
def _read_one(word, full, short, ac, ac_steps):
    """(what an AC symbol adds to the state, its coefficient or 0)."""
    entry = U(ac_steps[short + (word >> _SHIFT)])
    if entry == _0:
        symbol = U(ac[full + (word >> _48)])
        length, size = symbol >> _8, symbol & _15
        entry = length << _24 | size << _16 | (length + size) << _8 | (_EOB if symbol & _K == _0 else ((symbol >> _4) & _15) + _1)
    return entry & _AC_STEP, _value(word, entry >> _24, (entry >> _16) & _15)


@compiled
def _read_rest(stream, states, targets, count, limit, plane, table, ac, ac_steps, flat):
    """The coefficients up to ``limit`` of ``count`` blocks, from where their ``states`` are; what is past it lands in the last plane. One lookup of each
    block in turn: a processor looks ahead too little to begin the next block before one is done."""
    full, short = U(table * FULL), U(table * SHORT)
    while count > _0:
        kept = _0
        for index in range(np.int64(count)):
            s, target = states[index], targets[index]
            step, value = _read_one(peek(stream, s >> _8), full, short, ac, ac_steps)
            s += step
            flat[target + min((s & _K) - _1, limit) * plane] = value
            states[kept], targets[kept] = s, target
            kept += U(s & _K < limit)
        count = kept


@compiled
def read_coefficients(stream, places, unit_blocks, first, across, down, columns, restart, wanted, table, dc, dc_short, ac, ac_steps, lowest, out):
    """The lowest coefficients, in zigzag order, of the blocks of one component, into int16 ``out`` (wanted + 1, rows * down, columns * across), zeros before;
    what lands in its last plane means nothing. In each unit of ``unit_blocks`` blocks, ``across`` times ``down`` from ``first`` on are its own.
    Returns whether all differences were plausible.

    There are few branches that cannot be foretold: two lookups are made for each block, whatever they find, and blocks that need more wait for the end of their row.
    """
    plane, width, flat = U(out.shape[1] * out.shape[2]), U(out.shape[2]), out.reshape(-1)
    limit, full, short = U(wanted), U(table * FULL), U(table * SHORT)
    few = wanted <= 3
    states, targets = np.empty(columns * across * down + 1, np.uint64), np.empty(columns * across * down + 1, np.uint64)
    packed = np.empty(columns * across * down, np.uint32)
    prediction, beyond, unit = 0, _0, 0
    for row in range(out.shape[1] // down):
        count, start = _0, U(row * down) * width
        for column in range(columns):
            if restart and unit == restart:
                prediction, unit = 0, 0
            unit += 1
            block = U((row * columns + column) * unit_blocks + first)
            for y in range(down):
                for x in range(across):
                    s = places[block]
                    word = peek(stream, s)
                    entry = U(dc_short[short + (word >> _SHIFT)])
                    if entry == _0:
                        entry = U(dc[full + (word >> _48)])
                    prediction += _value(word, entry >> _8, entry & _15)
                    beyond |= U(prediction + 32768) >> _16
                    bits = (entry >> _8) + (entry & _15)
                    s = ((s + bits) << _8) | _1
                    values, going = U(prediction & 0xFFFF), _1
                    if few:
                        word <<= bits  # 27 at most, so 57 hold two lookups more
                        entry = U(lowest[short + (word >> _SHIFT)])
                        values |= entry & _VALUES
                        s += entry & _STEP
                        word <<= (entry >> _8) & _15
                        going = U(s & _K < limit)
                        entry = U(lowest[short + (word >> _SHIFT)])
                        values |= (entry & _VALUES) << _PLACES[s & _K]
                        s += entry & _STEP
                    place = U(y) * width + U(column * across + x)
                    packed[place] = np.uint32(values)
                    states[count], targets[count] = s, start + place
                    count += going & U(s & _K < limit)
                    block += _1
        for place in range(packed.size):
            flat[start + U(place)] = np.int16(packed[place] & 0xFFFF)
        if few:
            for place in range(packed.size):
                flat[start + U(place) + plane] = np.int8((packed[place] >> 16) & 0xFF)
            for place in range(packed.size):
                flat[start + U(place) + plane + plane] = np.int8(packed[place] >> 24)
        _read_rest(stream, states, targets, count, limit, plane, table, ac, ac_steps, flat)
    return beyond == _0

"""The entropy-coded bits of a baseline JPEG: where each block begins, and the lowest coefficients of each.

libjpeg reads every coefficient. For a picture that is to become small, few are wanted, so all bits are only skipped first, several symbols a
lookup, to find where the blocks begin; the lowest coefficients are then read there. Skipping is one chain of dependent lookups, and a
processor idles through most of it; so sixteen lanes skip at once, each from a place of its own. All but the first begin at a guess, in the middle
of anything. Huffman codes synchronise themselves: after a few blocks a lane most likely goes on at true beginnings of blocks, and it is
taken at its word only from where the lane before it comes to the very same place; where they never meet, the one before goes on.
So guesses cost time at worst. (The idea: Klein and Wiseman, Parallel Huffman decoding, The Computer Journal 46, 2003.)

A lane's state is ``bit position << 8 | k``; k is the index of the next coefficient in zigzag order, 0 for the difference that a block begins with.
Past the last it is 64, or 128 to 191 after an end-of-block code.
"""

from __future__ import annotations

import numpy as np

from .compiled import PAD_BYTES, U, compiled, inlined, load_word, peek, store_word, swapped
from .lanes import LANES, LOG_ROOM, LONG, begin_blocks, skip
from .tables import EOB, FULL, SHORT, SHORT_BITS

GROUPS = 2
"""Of lanes. Measured: 1 takes nearly twice the time of 2; 3 no less."""
_MIN_BITS = 2_048
"""Less is not worth another lane."""
_ROUND = 16
"""Visits of each group before the next look at who has arrived. At most 108 bits of a lane a visit: PAD_BYTES holds what is read past the end."""
_SYMBOLS = 2
"""Read one by one where the short tables fail."""
_FULL, _SHORT, _PAIR, _SHIFT = U(FULL), U(SHORT), U(2 * SHORT), U(64 - SHORT_BITS)
_ENDS, _K, _EOB = U(0xC0), U(0xFF), U(EOB)
_0, _1, _2, _4, _8, _15, _16, _24, _48, _63, _64, _256 = (U(n) for n in (0, 1, 2, 4, 8, 15, 16, 24, 48, 63, 64, 256))
_AC_STEP = U(0x3FFF)
_EACH_1, _EACH_80 = U(0x0101010101010101), U(0x8080808080808080)


_NEGATIVE = np.array([(1 << size) - 1 for size in range(16)] + [0] * 16, np.int64)
"""What is taken from the bits of a number, by its first bit and their count."""


@compiled
def take_bits(data, start, stream):
    """Copy the scan at byte ``start`` into ``stream`` without stuffed zeros, PAD_BYTES zeros after it. Returns how many bytes those are; 0 where
    anything but the end of the image ends them. ``stream`` has room for all of ``data`` after ``start``, and PAD_BYTES."""
    size, place, count = U(data.size), U(start), _0
    while place + _8 < size:
        word = load_word(data, place)
        store_word(stream, count, word)
        # The highest bit of the first byte that is 0xFF, perhaps others after it; bytes in the order of a number's.
        word = swapped(word)
        found = (~word - _EACH_1) & word & _EACH_80
        if found == _0:
            place += _8
            count += _8
            continue
        before = ((((found & (_0 - found)) - _1) & _EACH_1) * _EACH_1) >> U(56)  # bytes, itself counted
        place += before
        count += before
        follower = data[place]
        if follower != 0:
            count -= _1
            stream[count : count + U(PAD_BYTES)] = 0
            return np.int64(count) if follower == 0xD9 else 0
        place += _1
    while place + _1 < size:
        value = data[place]
        place += _1
        if value == 0xFF:
            if data[place] != 0:
                stream[count : count + U(PAD_BYTES)] = 0
                return np.int64(count) if data[place] == 0xD9 else 0
            place += _1
        stream[count] = value
        count += _1
    return 0


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
def _skip_odd(stream, end, states, odd, log, count, damaged, unit, dc, ac):
    """Take the lanes of ``odd`` over what the short tables do not decide. Returns the new ``count`` of the log."""
    for lane in range(LANES):
        if (odd >> U(lane)) & _1:
            s, block = states[0, lane], states[2, lane]
            further = _skip_symbols(stream, s, _SYMBOLS, unit[block], dc, ac)
            if further == _0 and s >> _8 > end - _8:
                further = end << _8  # in what fills the last byte
            elif further == _0:
                further = (s & ~_K) + (_256 | _EOB)  # a bit later
                damaged[lane] = states[3, lane] + _1
            if further & _ENDS:
                further &= ~_K
                log[count] = further | U(lane)
                count += _1
                states[3, lane] += _1
                block = _0 if block + _1 == U(unit.size) else block + _1
            states[0, lane], states[2, lane] = further, block
            states[1, lane] = unit[block] * _PAIR + (_SHORT if further & _K == _0 else _0)
    return count


@compiled
def _skip_together(stream, bounds, logs, unit, dc, ac, skips):
    """Skip from each of the bits ``bounds`` but the last to the next or a little further, in a lane each, and log where blocks begin, as ``state | lane``:
    uint64 ``logs`` (GROUPS, room). Returns the counts of those logs (0 where the room does not do), how many ends of blocks each lane has met, and of
    those, how many no longer count as a damaged block comes after."""
    states, damaged = np.zeros((GROUPS, 5, LANES), np.uint64), np.zeros((GROUPS, LANES), np.uint64)
    counts, kinds = np.zeros(GROUPS, np.uint64), _0
    for block in range(unit.size):
        kinds |= unit[block] << U(block)
    running = bounds.size - 1
    for lane in range(running):
        own = states[lane // LANES, :, lane % LANES]
        own[0], own[1], own[4] = bounds[lane] << _8, unit[0] * _PAIR + _SHORT, _1
    while running > 0:
        for group in range(GROUPS):
            if counts[group] + U(_ROUND * LOG_ROOM + LANES) > U(logs.shape[1]):
                return np.zeros(GROUPS, np.uint64), states[:, 3], damaged
        for _ in range(_ROUND):
            for group in range(GROUPS):
                count, odd = skip(stream, skips, kinds, U(unit.size), states[group], logs[group], counts[group])
                if odd:
                    count = _skip_odd(stream, bounds[-1], states[group], odd, logs[group], count, damaged[group], unit, dc, ac)
                counts[group] = count
        for lane in range(bounds.size - 1):
            own = states[lane // LANES, :, lane % LANES]
            if own[4] and own[0] >> _8 >= bounds[lane + 1]:
                own[4] = _0
                running -= 1
    return counts, states[:, 3], damaged


def log_room(blocks: int) -> int:
    """How much room each group's log needs: for all ends of blocks, as many again of lanes that are astray, and a round."""
    return 2 * blocks + 2 * (_ROUND * LOG_ROOM + LANES)


@compiled
def find_blocks(stream, size, unit, places, logs, lists, dc, ac, skips):
    """Where blocks begin, into uint64 ``places``: one more than there are blocks, as the last is where the bits end. ``unit`` has the kind of each block
    of a unit: 0, or 1 for the other components. The stream of ``size`` bytes goes on for PAD_BYTES. ``logs`` (GROUPS, room) and ``lists`` (GROUPS * room +
    GROUPS * LANES) are memory. Returns whether the bits hold exactly so many blocks."""
    end = 8 * size
    lanes = min(GROUPS * LANES, max(1, end // _MIN_BITS))
    bounds = np.empty(lanes + 1, np.uint64)
    for lane in range(lanes + 1):
        bounds[lane] = lane * end // lanes
    counts, ends, damaged = _skip_together(stream, bounds, logs, unit, dc, ac, skips)
    if counts[0] == _0:
        return False
    starts, tips = np.zeros(lanes + 1, np.uint64), np.zeros((GROUPS, LANES), np.uint64)
    for lane in range(lanes):
        lists[starts[lane]] = bounds[lane]
        tips[lane // LANES, lane % LANES] = starts[lane] + _1
        starts[lane + 1] = starts[lane] + ends[lane // LANES, lane % LANES] + _1
    for group in range(GROUPS):
        for index in range(counts[group]):
            entry = logs[group, index]
            lane = entry & U(LANES - 1)
            lists[tips[group, lane]] = entry >> _8
            tips[group, lane] += _1
    count, place, wanted, several = _0, _0, U(places.size), U(unit.size)
    for lane in range(lanes):
        start, last = starts[lane], starts[lane + 1] - _1
        entry = start + damaged[lane // LANES, lane % LANES]
        while place < bounds[lane + 1] and count + _1 < wanted:
            while entry <= last and lists[entry] < place:
                entry += _1
            if entry <= last and lists[entry] == place and (entry - start) % several == count % several:
                copied = min(last - entry, wanted - count - _1)
                for index in range(copied):
                    places[count + index] = lists[entry + index]
                count += copied
                place = lists[entry + copied]
                break
            places[count] = place
            s = _skip_symbols(stream, place << _8, 64, unit[count % several], dc, ac)
            if not s & _ENDS:
                return False
            count += _1
            place = s >> _8
    places[count] = place
    return count + _1 == wanted and end - 8 < np.int64(place) <= end


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
def read_coefficients(stream, places, unit_blocks, first, across, down, columns, wanted, table, dc, dc_short, ac, ac_steps, lowest, out):
    """The lowest ``wanted`` coefficients, 3 or more, in zigzag order, of the blocks of one component, into int16 ``out`` (wanted + 1, rows * down, columns *
    across), zeros before; what lands in its last plane means nothing. In each unit of ``unit_blocks`` blocks, ``across`` times ``down`` from
    ``first`` on are its own. Returns whether all differences were plausible."""
    plane, width, flat = U(out.shape[1] * out.shape[2]), U(out.shape[2]), out.reshape(-1)
    limit, full = U(wanted), U(table * FULL)
    several, own = columns * across * down, across * down
    room = several + LANES
    starts, states, targets = np.zeros(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint64)
    differences, values = np.empty(room, np.int64), np.empty(room, np.uint64)
    dc_short, lowest = dc_short[table * SHORT : table * SHORT + SHORT], lowest[table * SHORT : table * SHORT + SHORT]
    if wanted > 3:  # it knows no coefficient after the third
        lowest = np.zeros(SHORT, np.uint32)
    prediction, beyond = 0, _0
    for row in range(out.shape[1] // down):
        for column in range(columns):
            block = U((row * columns + column) * unit_blocks + first)
            for part in range(own):
                starts[column * own + part] = places[block + U(part)]
        for index in range(0, several, LANES):
            begin_blocks(stream, starts, U(index), dc_short, lowest, differences, values, states)
        count, start, column, y, x = _0, U(row * down) * width, 0, 0, 0
        for index in range(several):
            difference, found, s = differences[index], values[index], states[index]
            if difference == LONG:
                word = peek(stream, starts[index])
                entry = U(dc[full + (word >> _48)])
                length, size = entry >> _8, entry & _15
                difference, found, s = _value(word, length, size), _0, ((starts[index] + length + size) << _8) | _1
            prediction += difference
            beyond |= U(prediction + 32768) >> _16
            target = start + U(y) * width + U(column + x)
            flat[target] = np.int16(prediction)
            flat[target + plane] = np.int8(found & _K)
            flat[target + plane + plane] = np.int8(found >> _8)
            states[count], targets[count] = s, target
            count += U(s & _K < limit)
            x += 1
            if x == across:
                x = 0
                y += 1
                if y == down:
                    y = 0
                    column += across
        _read_rest(stream, states, targets, count, limit, plane, table, ac, ac_steps, flat)
    return beyond == _0

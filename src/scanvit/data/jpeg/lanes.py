"""What is done for eight bit positions at once: vector code, as LLVM makes it only where it is asked for.

A lookup is one step of a long chain, and a processor idles through most of it; in eight lanes, and two groups of them in turn, it does not. The
lookups themselves are plain loads: the gather instructions of most processors are slower than those. On a processor without such vectors the same
code becomes narrower; the results are the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.np import arrayobj

from .compiled import CHECKED, U, inlined, intrinsic, peek
from .tables import SHORT, SHORT_BITS

LANES = 8
LOOKUPS = 3
"""A visit. 57 bits hold three lookups: a difference takes at most SHORT_BITS and 11 bits, the coefficients after it SHORT_BITS and 10."""
LOG_ROOM = LOOKUPS * LANES + LANES
"""Entries of a log that one visit may write."""
LONG = 1 << 15
"""What ``begin_blocks`` says of a difference whose code the short table does not know. No true one is as large."""
_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_SHIFT = 64 - SHORT_BITS


class _Vectors:
    """Eight whole numbers at once: a thin layer over LLVM's builder."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments

    def data(self, argument: int) -> Any:
        """The address of an array's first number."""
        array = arrayobj.make_array(self.signature.args[argument])
        return array(self.context, self.builder, self.arguments[argument]).data

    def all(self, value: Any) -> Any:
        """The same in all lanes: a constant or a number."""
        if isinstance(value, int):
            return ir.Constant(ir.VectorType(_I64, LANES), [value] * LANES)
        none = ir.Constant(ir.VectorType(_I64, LANES), ir.Undefined)
        first = self.builder.insert_element(none, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))

    def load(self, pointer: Any, row: int = 0) -> Any:
        return self.builder.load(self._row(pointer, row), align=8)

    def store(self, vector: Any, pointer: Any, row: int = 0) -> None:
        self.builder.store(vector, self._row(pointer, row), align=8)

    def _row(self, pointer: Any, row: int) -> Any:
        vectors = self.builder.bitcast(pointer, ir.VectorType(_I64, LANES).as_pointer())
        return self.builder.gep(vectors, [ir.Constant(_I64, row)])

    def look_up(self, pointer: Any, places: Any, kind: Any) -> Any:
        """The numbers of type ``kind`` at ``places``, widened; eight bytes at byte ``places`` where ``kind`` is 64 bits wide."""
        with self.builder.goto_entry_block():
            memory = self.builder.alloca(ir.VectorType(_I64, LANES))
        memory.align = 64
        self.builder.store(places, memory, align=64)
        found = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
        for lane in range(LANES):
            place = self.builder.load(self.builder.gep(self.builder.bitcast(memory, _I64.as_pointer()), [ir.Constant(_I64, lane)]))
            address = self.builder.bitcast(self.builder.gep(pointer, [place]), kind.as_pointer())
            found = self.builder.insert_element(found, self.builder.load(address, align=1), ir.Constant(_I32, lane))
        return found if kind is _I64 else self.builder.zext(found, ir.VectorType(_I64, LANES))

    def call(self, name: str, *operands: Any) -> Any:
        function = self.builder.module.globals.get(name)
        if function is None:
            function = ir.Function(self.builder.module, ir.FunctionType(operands[0].type, [operand.type for operand in operands]), name)
        return self.builder.call(function, operands)

    def peek(self, stream: Any, positions: Any) -> Any:
        """As ``compiled.peek``."""
        words = self.look_up(stream, self.builder.lshr(positions, self.all(3)), _I64)
        return self.builder.shl(self.call(f"llvm.bswap.v{LANES}i64", words), self.builder.and_(positions, self.all(7)))

    def equal(self, a: Any, b: Any) -> Any:
        return self.builder.icmp_unsigned("==", a, b)

    def any(self, vector: Any, bits: int) -> Any:
        return self.builder.icmp_unsigned("!=", self.builder.and_(vector, self.all(bits)), self.all(0))


@intrinsic
def _skip(typing_context: Any, stream: Any, skips: Any, kinds: Any, several: Any, states: Any, log: Any, count: Any) -> Any:
    u64 = numba.types.uint64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _Vectors(context, builder, signature, arguments)
        stream, skips, rows, log = v.data(0), v.data(1), v.data(4), v.data(5)
        kinds, several, count = v.all(arguments[2]), v.all(arguments[3]), arguments[6]
        s, table, block, ends = (v.load(rows, row) for row in range(4))
        began = live = v.any(v.load(rows, 4), 1)
        word = v.peek(stream, builder.lshr(s, v.all(8)))
        names = ir.Constant(ir.VectorType(_I64, LANES), list(range(LANES)))
        for _ in range(LOOKUPS):
            entry = v.look_up(skips, builder.add(table, builder.lshr(word, v.all(_SHIFT))), _I16)
            word = builder.shl(word, builder.and_(builder.lshr(entry, v.all(8)), v.all(63)))
            further = builder.add(s, entry)
            live = builder.and_(live, builder.not_(v.any(further, 64)))
            s = builder.select(live, further, s)
            end = builder.and_(live, v.any(further, 128))
            s = builder.select(end, builder.and_(s, v.all(~255)), s)
            nothing = ir.Constant(ir.VectorType(_I64, LANES), ir.Undefined)
            ended = v.call(f"llvm.experimental.vector.compress.v{LANES}i64", builder.or_(s, names), end, nothing)
            v.store(ended, builder.gep(log, [count]))
            count = builder.add(count, builder.zext(v.call("llvm.ctpop.i8", builder.bitcast(end, ir.IntType(LANES))), _I64))
            ends = builder.select(end, builder.add(ends, v.all(1)), ends)
            following = builder.add(block, v.all(1))
            block = builder.select(end, builder.select(v.equal(following, several), v.all(0), following), block)
            table = builder.shl(builder.and_(builder.lshr(kinds, block), v.all(1)), v.all(SHORT_BITS + 1))
            table = builder.select(end, builder.or_(table, v.all(SHORT)), table)
        for row, vector in enumerate((s, table, block, ends)):
            v.store(vector, rows, row)
        odd = builder.zext(builder.bitcast(builder.and_(began, builder.not_(live)), ir.IntType(LANES)), _I64)
        return context.make_tuple(builder, signature.return_type, [count, odd])

    return numba.types.UniTuple(u64, 2)(stream, skips, u64, u64, states, log, u64), generate


@intrinsic
def _begin(typing_context: Any, stream: Any, starts: Any, first: Any, dc_short: Any, lowest: Any, differences: Any, values: Any, states: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _Vectors(context, builder, signature, arguments)
        starts, differences, values, states = (builder.gep(v.data(argument), [arguments[2]]) for argument in (1, 5, 6, 7))
        position = v.load(starts)
        word = v.peek(v.data(0), position)
        entry = v.look_up(v.data(3), builder.lshr(word, v.all(_SHIFT)), _I16)
        length, size = builder.lshr(entry, v.all(8)), builder.and_(entry, v.all(15))
        bits = builder.shl(word, length)
        number = builder.lshr(builder.lshr(bits, v.all(1)), builder.sub(v.all(63), size))
        largest = builder.sub(builder.shl(v.all(1), size), v.all(1))
        difference = builder.sub(number, builder.select(builder.icmp_signed("<", bits, v.all(0)), v.all(0), largest))
        v.store(builder.select(v.equal(entry, v.all(0)), v.all(LONG), difference), differences)
        word = builder.shl(bits, size)
        s = builder.or_(builder.shl(builder.add(position, builder.add(length, size)), v.all(8)), v.all(1))
        entry = v.look_up(v.data(4), builder.lshr(word, v.all(_SHIFT)), _I32)
        found = builder.lshr(entry, v.all(16))
        s = builder.add(s, builder.and_(entry, v.all(0xFFF)))
        word = builder.shl(word, builder.and_(builder.lshr(entry, v.all(8)), v.all(15)))
        second = v.equal(builder.and_(s, v.all(255)), v.all(2))
        entry = v.look_up(v.data(4), builder.lshr(word, v.all(_SHIFT)), _I32)
        more = builder.and_(builder.lshr(entry, v.all(8)), v.all(0xFF00))
        v.store(builder.or_(found, builder.select(second, more, v.all(0))), values)
        v.store(builder.select(second, builder.add(s, builder.and_(entry, v.all(0xFFF))), s), states)
        return context.get_dummy_value()

    return numba.types.void(stream, starts, numba.types.uint64, dc_short, lowest, differences, values, states), generate


def _skip_fast(stream, skips, kinds, several, states, log, count):
    return _skip(stream, skips, kinds, several, states, log, count)


def _begin_fast(stream, starts, first, dc_short, lowest, differences, values, states):
    _begin(stream, starts, first, dc_short, lowest, differences, values, states)


def _skip_checked(stream, skips, kinds, several, states, log, count):
    odd = U(0)
    for _ in range(LOOKUPS):
        for lane in range(LANES):
            s, table, block = states[0, lane], states[1, lane], states[2, lane]
            if states[4, lane] and not (odd >> U(lane)) & U(1):
                further = s + U(skips[table + (peek(stream, s >> U(8)) >> U(_SHIFT))])
                if further & U(64):
                    odd |= U(1) << U(lane)
                    continue
                end = further & U(128) != 0
                if end:
                    further &= ~U(255)
                    log[count] = further | U(lane)
                    count += U(1)
                    states[3, lane] += U(1)
                    block = U(0) if block + U(1) == several else block + U(1)
                states[0, lane], states[2, lane] = further, block
                states[1, lane] = (((kinds >> block) & U(1)) << U(SHORT_BITS + 1)) + (U(SHORT) if end else U(0))
    return count, odd


def _begin_checked(stream, starts, first, dc_short, lowest, differences, values, states):
    for index in range(first, first + U(LANES)):
        word = peek(stream, starts[index])
        entry = U(dc_short[word >> U(_SHIFT)])
        length, size = entry >> U(8), entry & U(15)
        bits = word << length
        differences[index] = np.int64((bits >> U(1)) >> (U(63) - size)) - (0 if bits >> U(63) else (1 << size) - 1) if entry else LONG
        word = bits << size
        s = ((starts[index] + length + size) << U(8)) | U(1)
        found = U(0)
        for _ in range(2):
            k = s & U(255)
            if k <= U(2):
                entry = U(lowest[word >> U(_SHIFT)])
                found |= (entry >> U(16)) << (U(8) * (k - U(1)))
                s += entry & U(0xFFF)
                word <<= (entry >> U(8)) & U(15)
        values[index], states[index] = found & U(0xFFFF), s


skip = inlined(_skip_checked if CHECKED else _skip_fast)
"""(stream, skips, kinds, several, states, log, count) -> (count, odd): three lookups in each lane. uint64 ``states`` (5, LANES) has, a row each, the
states of ``data.jpeg.scan``, where in ``skips`` each lane looks, which block of its unit it is in, how many ends of blocks it has met, and whether it
takes part. Ends go to ``log`` as ``state | lane``. ``odd`` has a bit for each lane that stands before something the short tables do not decide."""
begin_blocks = inlined(_begin_checked if CHECKED else _begin_fast)
"""(stream, starts, first, dc_short, lowest, differences, values, states): of the LANES blocks that begin at ``starts`` from index ``first`` on, the
difference of the first coefficient or LONG, the second and third, a signed byte each, as far as two lookups find them, and the states after that."""

"""The product that all others are made of: a few rows by 16 columns, held in registers, over any number of terms.

It is written for LLVM directly. Each term loads a line of 16 numbers of the right side and multiplies it by one number of every row of
the left one, wherever that lies. So nothing is copied into another order first, which is what a library spends on matrices as thin as
those of attention and of adapters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

COLUMNS = 16
WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if WIDE else 8
"""Numbers of a register; a processor whose registers are shorter takes two."""
ROWS = 12 if WIDE else 6
"""Twelve sums keep both multipliers busy and leave registers for the factors."""
FLOAT, INDEX, LANE = ir.FloatType(), ir.IntType(64), ir.IntType(32)
LINE = ir.VectorType(FLOAT, LANES)
CONTRACT = ("contract",)
"""A product and a sum may be rounded once."""


def _tile(rows: int) -> Callable[..., None]:
    @intrinsic
    def tile(
        typing: Any, left: Any, left_at: Any, row: Any, term: Any, right: Any, right_at: Any, line: Any, out: Any, out_at: Any,
        out_row: Any, count: Any, scale: Any, kept: Any,
    ) -> Any:  # fmt: skip
        """out = scale left right, added to `out` if it is kept: (rows, count) by (count, 16), of float32.

        An array is given with where in it to begin, in numbers, and how far it is to the next row or term; a line of 16 is contiguous.
        No bounds are looked at.
        """
        if any(not isinstance(each, types.Array) or each.dtype != types.float32 for each in (left, right, out)):
            return None
        places = types.int64, types.int64
        given = left, *places, types.int64, right, *places, out, *places, types.int64, types.float32, types.boolean
        return types.void(*given), _code_of(rows)

    return tile


def _code_of(rows: int) -> Callable[..., Any]:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        left, right, out = (
            builder.gep(context.make_array(signature.args[place])(context, builder, given[place]).data, [given[place + 1]])
            for place in (0, 4, 7)
        )
        row, term, line, out_row, count, scale, kept = (given[place] for place in (2, 3, 6, 9, 10, 11, 12))
        sums = [[cgutils.alloca_once(builder, LINE) for _ in range(0, COLUMNS, LANES)] for _ in range(rows)]
        for each in itertools.chain(*sums):
            builder.store(ir.Constant(LINE, [0.0] * LANES), each)
        with cgutils.for_range(builder, count) as loop:
            lines = [_load(builder, place) for place in _lines(builder, right, loop.index, line)]
            first = builder.gep(left, [builder.mul(loop.index, term)])
            for number, totals in enumerate(sums):
                factor = _spread(builder, builder.load(_row(builder, first, number, row)))
                for total, other in zip(totals, lines, strict=True):
                    builder.store(_add(builder, builder.load(total), builder.fmul(factor, other, flags=CONTRACT)), total)
        factor = _spread(builder, scale)
        with builder.if_else(kept) as (adding, alone):
            for branch, adds in ((adding, True), (alone, False)):
                with branch:
                    for number, totals in enumerate(sums):
                        places = _lines(builder, _row(builder, out, number, out_row), ir.Constant(INDEX, 0), out_row)
                        for place, total in zip(places, totals, strict=True):
                            found = builder.fmul(builder.load(total), factor, flags=CONTRACT)
                            found = _add(builder, _load(builder, place), found) if adds else found
                            builder.store(found, place).align = 4
        return context.get_dummy_value()

    return code


@intrinsic
def fetch(typing: Any, array: Any, place: Any) -> Any:
    """Bring the line with a number of an array into the cache; a place outside of it does no harm."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        start = builder.gep(context.make_array(signature.args[0])(context, builder, given[0]).data, [given[1]])
        place = builder.bitcast(start, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, LANE, LANE, LANE])
        to_read, to_all_caches, data = (ir.Constant(LANE, number) for number in (0, 3, 1))
        instruction = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(instruction, [place, to_read, to_all_caches, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), code


def _row(builder: Any, start: Any, number: int, row: Any) -> Any:
    return builder.gep(start, [builder.mul(row, ir.Constant(INDEX, number))])


def _lines(builder: Any, start: Any, number: Any, line: Any) -> list[Any]:
    """Where the registers of a line of 16 begin."""
    first = builder.gep(start, [builder.mul(number, line)])
    places = (builder.gep(first, [ir.Constant(INDEX, column)]) for column in range(0, COLUMNS, LANES))
    return [builder.bitcast(place, LINE.as_pointer()) for place in places]


def _load(builder: Any, place: Any) -> Any:
    found = builder.load(place)
    found.align = 4
    return found


def _spread(builder: Any, number: Any) -> Any:
    """A number in all lanes."""
    nothing = ir.Constant(LINE, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(LANE, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(LANE, LANES), [0] * LANES))


def _add(builder: Any, total: Any, more: Any) -> Any:
    return builder.fadd(total, more, flags=CONTRACT)


tile, single = _tile(ROWS), _tile(1)
"""A tile of `ROWS` rows, and one of a single row for what is left over."""

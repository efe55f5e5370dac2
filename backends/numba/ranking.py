"""The running best chunks of a vector of queries: LLVM IR beside `intrinsics`.

A lane holds a query. Scores come chunk by chunk, and each lane keeps its best so far in a list of ranks, best first,
and a list of their chunk numbers, both (most, vectors, lanes). A rank is an int32 in the order of the scores: NaN
first, -0 as +0. Beside them stands each lane's limit, the score that the last of its list has: a chunk whose scores
pass no limit, which is most of them, costs one comparison for all lanes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsemoc.backends.numba.intrinsics import Emit, vector_bytes

_I64 = ir.IntType(64)
#: Ranks below every score, -inf too: what stands in a list that is not full. As a limit it is a NaN, which all pass.
NO_SCORE = -(2**31)
_LOW_BITS = 2**31 - 1


def _flipped(emit: Emit, bits: ir.Value) -> ir.Value:
    """Return bits whose order as signed numbers is that of the floats, or the way back: it is its own inverse."""
    builder = emit.builder
    return builder.xor(bits, builder.and_(builder.ashr(bits, emit.whole(31)), emit.whole(_LOW_BITS)))


def _insert(emit: Emit, score: ir.Value, chunk: ir.Value, place: list[ir.Value], most: ir.Value, step: int) -> None:
    """Emit the insertion of a chunk into every lane's list; an equal rank stays behind, it is of a higher chunk.

    `place` are the addresses of the vector's ranks, chunks and limits; entries lie `step` bytes apart.
    """
    builder = emit.builder
    ranks, chunks, limits = place
    rank = _flipped(emit, builder.bitcast(builder.fadd(score, emit.number(0.0)), emit.whole(0).type))
    rank = builder.select(builder.fcmp_unordered("uno", score, score), emit.whole(_LOW_BITS), rank)
    nowhere = ir.Constant(ir.VectorType(ir.IntType(1), emit.lanes), [0] * emit.lanes)

    def shift(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        rank, chunk, moving, _ = carried
        offset = builder.mul(index, _I64(step))
        at_rank, at_chunk = builder.add(ranks, offset), builder.add(chunks, offset)
        old_rank, old_chunk = emit.load(at_rank, rank.type), emit.load(at_chunk, chunk.type)
        # Behind the place of the new entry every entry moves on, equal ranks too.
        moving = builder.or_(moving, builder.icmp_signed(">", rank, old_rank))
        kept = builder.select(moving, rank, old_rank)
        emit.store(kept, at_rank)
        emit.store(builder.select(moving, chunk, old_chunk), at_chunk)
        return [builder.select(moving, old_rank, rank), builder.select(moving, old_chunk, chunk), moving, kept]

    last = emit.loop(most, [rank, chunk, nowhere, rank], shift)[3]
    emit.store(builder.bitcast(_flipped(emit, last), emit.vector), limits)


@intrinsic
def keep_best(typing, scores, count, vectors, first, ranks, chunks, limits, most):  # type: ignore[no-untyped-def]
    """Take `count` chunks from number `first` on, scores (count, vectors, lanes), into lists of `most` > 0 entries."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        scores, count, vectors, first, ranks, chunks, limits, most = args
        emit = Emit(builder, 4, vector_bytes() // 4)
        # Two vectors to a chunk, whether the second is used or not: entries stand at constant distances.
        size = vector_bytes()

        def chunk_step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            number = emit.splat(builder.trunc(builder.add(first, index), ir.IntType(32)))

            def vector_step(vector: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
                offset = builder.mul(vector, _I64(size))
                at = builder.add(scores, builder.add(builder.mul(index, _I64(2 * size)), offset))
                score, place = emit.load(at), [builder.add(base, offset) for base in (ranks, chunks, limits)]
                # "Unordered or greater": a NaN passes every limit, and every score the limit of a list not yet full.
                passes = builder.fcmp_unordered(">", score, emit.load(place[2]))
                some = builder.icmp_unsigned("!=", _mask(emit, passes), ir.IntType(emit.lanes)(0))
                with builder.if_then(some, likely=False):
                    _insert(emit, score, number, place, most, 2 * size)
                return []

            emit.loop(vectors, [], vector_step)
            return []

        emit.loop(count, [], chunk_step)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 8), codegen


def _mask(emit: Emit, lanes: ir.Value) -> ir.Value:
    return emit.builder.bitcast(lanes, ir.IntType(emit.lanes))


@intrinsic
def sort_lanes(typing, chunks, most, vectors):  # type: ignore[no-untyped-def]
    """Sort every lane's list of chunk numbers, (most, 2, lanes): lanes go through the same exchanges together."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        chunks, most, vectors = args
        emit = Emit(builder, 4, vector_bytes() // 4)
        size, kind = vector_bytes(), ir.VectorType(ir.IntType(32), vector_bytes() // 4)

        def sort(vector: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            base = builder.add(chunks, builder.mul(vector, _I64(size)))

            def insert(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
                def exchange(back: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
                    upper = builder.add(base, builder.mul(builder.sub(index, back), _I64(2 * size)))
                    lower = builder.sub(upper, _I64(2 * size))
                    one, other = emit.load(lower, kind), emit.load(upper, kind)
                    ordered = builder.icmp_signed("<", one, other)
                    emit.store(builder.select(ordered, one, other), lower)
                    emit.store(builder.select(ordered, other, one), upper)
                    return []

                emit.loop(index, [], exchange)
                return []

            emit.loop(most, [], insert)
            return []

        emit.loop(vectors, [], sort)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 3), codegen


@intrinsic
def transpose(typing, like, target, target_row, source, source_row):  # type: ignore[no-untyped-def]
    """Transpose a square block of lanes x lanes elements; rows of either side lie some bytes apart."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _, target, target_row, source, source_row = args
        itemsize = signature.args[0].bitwidth // 8
        emit = Emit(builder, itemsize, vector_bytes() // itemsize)
        rows = [emit.load(builder.add(source, builder.mul(source_row, _I64(row)))) for row in range(emit.lanes)]
        for row, value in enumerate(_transposed(emit, rows)):
            emit.store(value, builder.add(target, builder.mul(target_row, _I64(row))))
        return context.get_dummy_value()

    return types.none(like, *(types.int64,) * 4), codegen


def _transposed(emit: Emit, rows: list[Any]) -> list[Any]:
    """Emit the transpose of a square block: swap one bit of the row number with that of the column, bit after bit."""
    lanes, step = emit.lanes, 1
    while step < lanes:
        mixed = list(rows)
        low = [p if not p & step else lanes + p - step for p in range(lanes)]
        high = [p + step if not p & step else lanes + p for p in range(lanes)]
        for row in range(lanes):
            if not row & step:
                pair = rows[row], rows[row | step]
                mixed[row], mixed[row | step] = (_shuffled(emit, *pair, order) for order in (low, high))
        rows, step = mixed, 2 * step
    return rows


def _shuffled(emit: Emit, one: ir.Value, other: ir.Value, order: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), emit.lanes), order)
    return emit.builder.shuffle_vector(one, other, mask)

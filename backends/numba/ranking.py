"""Scores as whole numbers that order as they rank, and the best of a row: LLVM IR beside `intrinsics`."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsemoc.backends.numba.intrinsics import Emit, vector_bytes

_I32, _I64 = ir.IntType(32), ir.IntType(64)
#: Ranks below every score, -inf too.
NO_SCORE = -(2**31)
#: Ranks that are looked through at once: rows are filled up to whole groups.
GROUP = 64


@intrinsic
def rank_scores(typing, row, vectors):  # type: ignore[no-untyped-def]
    """Turn a row of float32 scores into int32 in the same order: NaN first, -0 as +0, -inf above NO_SCORE."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emit(builder, 4, vector_bytes() // 4)

        def step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            at = builder.add(args[0], builder.mul(index, _I64(vector_bytes())))
            score = builder.fadd(emit.load(at), emit.number(0.0))
            bits = builder.bitcast(score, emit.whole(0).type)
            flipped = builder.and_(builder.ashr(bits, emit.whole(31)), emit.whole(2**31 - 1))
            rank = builder.xor(bits, flipped)
            rank = builder.select(builder.fcmp_unordered("uno", score, score), emit.whole(2**31 - 1), rank)
            emit.store(rank, at)
            return []

        emit.loop(args[1], [], step)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def best_rank(typing, row, vectors, limit):  # type: ignore[no-untyped-def]
    """Return the largest int32 <= limit of a row, NO_SCORE if there is none."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emit(builder, 4, vector_bytes() // 4)
        limit, none_left = emit.splat(args[2]), emit.whole(NO_SCORE)

        def larger(left: ir.Value, right: ir.Value) -> ir.Value:
            return builder.select(builder.icmp_signed(">", right, left), right, left)

        def step(index: ir.Value, best: list[ir.Value]) -> list[ir.Value]:
            rank = emit.load(builder.add(args[0], builder.mul(index, _I64(vector_bytes()))), limit.type)
            allowed = builder.select(builder.icmp_signed("<=", rank, limit), rank, none_left)
            return [larger(best[0], allowed)]

        (best,) = emit.loop(args[1], [none_left], step)
        return emit.fold(best, larger)

    return types.int32(types.int64, types.int64, types.int32), codegen


@intrinsic
def places_of(typing, row, groups, rank):  # type: ignore[no-untyped-def]
    """Return count * 2**32 + the last index of a rank that the row holds `count` times.

    The row comes in groups of 64: one 64-bit mask each, and one count of its bits.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emit(builder, 4, GROUP)
        wanted = emit.splat(args[2])

        def step(index: ir.Value, found: list[ir.Value]) -> list[ir.Value]:
            values = emit.load(builder.add(args[0], builder.mul(index, _I64(4 * GROUP))), wanted.type)
            mask = builder.bitcast(builder.icmp_signed("==", values, wanted), _I64)
            first = builder.add(builder.mul(index, _I64(GROUP)), builder.cttz(mask, ir.IntType(1)(0)))
            some = builder.icmp_unsigned("!=", mask, _I64(0))
            return [builder.add(found[0], builder.ctpop(mask)), builder.select(some, first, found[1])]

        count, place = emit.loop(args[1], [_I64(0), _I64(0)], step)
        return builder.add(builder.shl(count, _I64(32)), place)

    return types.int64(types.int64, types.int64, types.int32), codegen

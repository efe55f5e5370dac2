"""The vector instructions of the CPU kernels, as LLVM IR: what the loop vectoriser would not find by itself.

Operands are addresses (int64), strides are in bytes; the type of a first argument `like` chooses float32 or float64.
The products are the inner kernel of all matrix work: C[r, :] (+)= sum_k A[r, k] B[k, :], the C tile in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _host_features() -> set[str]:
    return {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}


@cache
def vector_bytes() -> int:
    """Return the width of this machine's widest vector registers."""
    features = _host_features()
    return 64 if "avx512f" in features else 32 if "avx2" in features else 16


@cache
def strip_rows() -> int:
    """Return the most rows of a strip: rows x 2 accumulators, 2 loads and a broadcast must fit the registers."""
    many_registers = "avx512f" in _host_features() or not llvmlite.binding.get_process_triple().startswith("x86")
    return 14 if many_registers else 6


#: Constants of this machine, as the kernels see them: bytes of a vector, and rows of a strip.
VECTOR = vector_bytes()
STRIP = strip_rows()


class Emit:
    """Helpers over an IR builder for one float type."""

    def __init__(self, builder: ir.IRBuilder, itemsize: int, lanes: int) -> None:
        self.builder = builder
        self.itemsize = itemsize
        self.scalar = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.integer = ir.IntType(8 * itemsize)
        self.lanes = lanes
        self.vector = ir.VectorType(self.scalar, lanes)

    def load(self, address: ir.Value, kind: ir.Type | None = None) -> ir.Value:
        """Emit a load of a vector, or of another type, from an address."""
        kind = kind or self.vector
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = self.itemsize
        return value

    def store(self, value: ir.Value, address: ir.Value) -> None:
        """Emit a store to an address."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = self.itemsize

    def splat(self, value: ir.Value, kind: ir.Type | None = None) -> ir.Value:
        """Emit a vector of one value."""
        kind = kind or ir.VectorType(value.type, self.lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def number(self, value: float) -> ir.Constant:
        """Return a vector constant of the float type."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def whole(self, value: int) -> ir.Constant:
        """Return a vector constant of whole numbers as wide as the float type."""
        return ir.Constant(ir.VectorType(self.integer, self.lanes), [value] * self.lanes)

    def call(self, name: str, *values: ir.Value) -> ir.Value:
        """Emit a call of an LLVM intrinsic on vectors."""
        suffix = f"v{self.lanes}f{8 * self.itemsize}"
        kind = ir.FunctionType(self.vector, [value.type for value in values])
        function = self.builder.module.globals.get(f"llvm.{name}.{suffix}")
        if function is None:
            function = ir.Function(self.builder.module, kind, f"llvm.{name}.{suffix}")
        return self.builder.call(function, values)

    def fold(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Reduce a vector to a scalar by halves, in a fixed order."""
        width = self.lanes
        while width > 1:
            width //= 2
            order = [(i + width) % self.lanes for i in range(self.lanes)]
            mask = ir.Constant(ir.VectorType(_I32, self.lanes), order)
            value = combine(value, self.builder.shuffle_vector(value, value, mask))
        return self.builder.extract_element(value, _I32(0))

    def loop(
        self, count: ir.Value, start: list[ir.Value], body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]]
    ) -> list[ir.Value]:
        """Emit `for i in range(count): carried = body(i, carried)` and return what it carries out."""
        builder = self.builder
        before = builder.basic_block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_I64)
        carried = [builder.phi(value.type) for value in start]
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        new = body(index, carried)
        index.add_incoming(_I64(0), before)
        index.add_incoming(builder.add(index, _I64(1)), builder.basic_block)
        for phi, first, later in zip(carried, start, new, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, builder.basic_block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried


def _emit(builder: ir.IRBuilder, signature: Any) -> Emit:
    """Return the helpers for the float type of the first argument."""
    itemsize = signature.args[0].bitwidth // 8
    return Emit(builder, itemsize, vector_bytes() // itemsize)


#: Elements from row to row of the strip buffers. Constants, so that every element of a strip is an immediate offset
#: from one address (pointers to 14 rows would not fit the integer registers); no multiple of a page, so that rows
#: do not share cache sets.
ROW = 272
LOGIT_ROW = 592


def _product(a_row: int, a_k: int) -> Any:
    """Return the intrinsic C[r, :] (+)= sum_k A[r, k] B[k, :], A's strides (in elements) fixed.

    Arguments: like (its type is the float type), rows (1 ... strip_rows()), vectors of columns (1 or 2), a, b, b_k, c,
    c_row, depth, accumulate (0 or 1).
    """

    @intrinsic
    def product(  # type: ignore[no-untyped-def]
        typing, like, rows, vectors, a, b, b_k, c, c_row, depth, accumulate
    ):
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            itemsize = signature.args[0].bitwidth // 8
            _, rows, vectors, *operands = args
            after = builder.append_basic_block("after")
            shapes = [(r, v) for r in range(1, strip_rows() + 1) for v in (1, 2)]
            number = builder.add(builder.mul(rows, _I64(2)), vectors)
            choice = builder.switch(number, after)
            for shape in shapes:
                block = builder.append_basic_block(f"rows{shape[0]}x{shape[1]}")
                choice.add_case(_I64(2 * shape[0] + shape[1]), block)
                builder.position_at_end(block)
                _emit_product(builder, itemsize, shape, (a_row * itemsize, a_k * itemsize), operands)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.none(like, *(types.int64,) * 9), codegen

    return product


def _emit_product(
    builder: ir.IRBuilder, itemsize: int, shape: tuple[int, int], a_strides: tuple[int, int], operands: list[ir.Value]
) -> None:
    emit = Emit(builder, itemsize, vector_bytes() // itemsize)
    rows, vectors = shape
    a, b, b_k, c, c_row, depth, accumulate = operands
    accumulate = builder.trunc(accumulate, ir.IntType(1))
    places = [(row, vector * vector_bytes()) for row in range(rows) for vector in range(vectors)]

    def address(row: int, offset: int) -> ir.Value:
        return builder.add(c, builder.add(builder.mul(c_row, _I64(row)), _I64(offset)))

    fresh, again, ready = (builder.append_basic_block(name) for name in ("fresh", "again", "ready"))
    builder.cbranch(accumulate, again, fresh)
    builder.position_at_end(again)
    old = [emit.load(address(*place)) for place in places]
    builder.branch(ready)
    builder.position_at_end(fresh)
    builder.branch(ready)
    builder.position_at_end(ready)
    start = []
    for value in old:
        phi = builder.phi(emit.vector)
        phi.add_incoming(value, again)
        phi.add_incoming(emit.number(0.0), fresh)
        start.append(phi)

    def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        at_b = builder.add(b, builder.mul(k, b_k))
        at_a = builder.add(a, builder.mul(k, _I64(a_strides[1])))
        right = [emit.load(builder.add(at_b, _I64(v * vector_bytes()))) for v in range(vectors)]
        new = []
        for row in range(rows):
            left = emit.splat(emit.load(builder.add(at_a, _I64(row * a_strides[0])), emit.scalar), emit.vector)
            new += [emit.call("fma", left, right[v], sums[row * vectors + v]) for v in range(vectors)]
        return new

    for value, place in zip(emit.loop(depth, start, step), places, strict=True):
        emit.store(value, address(*place))


@intrinsic
def multiply(typing, product, rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    """Call a compiled product by its address, see `products.addresses`.

    Called so, the many unrolled loops of a product are compiled once, and not again into every kernel that uses it.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 9)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 10), codegen


@intrinsic
def prefetch(typing, address, size):  # type: ignore[no-untyped-def]
    """Ask for the memory of `size` bytes from an address to come to the cache; any address will do."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emit(builder, 4, vector_bytes() // 4)
        byte = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)

        def step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            at = builder.inttoptr(builder.add(args[0], builder.mul(index, _I64(64))), byte)
            builder.call(function, [at, _I32(0), _I32(3), _I32(1)])
            return []

        emit.loop(builder.ashr(builder.add(args[1], _I64(63)), _I64(6)), [], step)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def row_copy(typing, like, target, source, vectors):  # type: ignore[no-untyped-def]
    """Copy a row of whole vectors."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _emit(builder, signature)

        def step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            offset = builder.mul(index, _I64(vector_bytes()))
            emit.store(emit.load(builder.add(args[2], offset)), builder.add(args[1], offset))
            return []

        emit.loop(args[3], [], step)
        return context.get_dummy_value()

    return types.none(like, *(types.int64,) * 3), codegen


@intrinsic
def row_blend(typing, like, target, fade, source, vectors):  # type: ignore[no-untyped-def]
    """Make a row target * fade + source."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _emit(builder, signature)
        fade = emit.splat(args[2])

        def step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            offset = builder.mul(index, _I64(vector_bytes()))
            at = builder.add(args[1], offset)
            emit.store(emit.call("fma", emit.load(at), fade, emit.load(builder.add(args[3], offset))), at)
            return []

        emit.loop(args[4], [], step)
        return context.get_dummy_value()

    return types.none(like, types.int64, like, types.int64, types.int64), codegen


@intrinsic
def row_max(typing, like, row, vectors):  # type: ignore[no-untyped-def]
    """Return the largest element of a row; NaN are passed over."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _emit(builder, signature)

        def larger(left: ir.Value, right: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered(">", right, left), right, left)

        def step(index: ir.Value, best: list[ir.Value]) -> list[ir.Value]:
            return [larger(best[0], emit.load(builder.add(args[1], builder.mul(index, _I64(vector_bytes())))))]

        (best,) = emit.loop(args[2], [emit.number(float("-inf"))], step)
        return emit.fold(best, larger)

    return like(like, types.int64, types.int64), codegen


#: Coefficients of 2**f on [-1/2, 1/2], highest power first: Chebyshev interpolation, relative error below half an ulp.
_EXP2 = {
    4: [1.5403530393381608e-4, 1.3333558146428443e-3, 9.618129107628477e-3, 5.550410866482158e-2,
        2.402265069591007e-1, 6.931471805599453e-1, 1.0],
    8: [2.5678435993488206e-11, 4.4455382718708116e-10, 7.054911620801123e-9, 1.0178086009239699e-7,
        1.3215486790144309e-6, 1.5252733804059841e-5, 1.5403530393381608e-4, 1.3333558146428443e-3,
        9.618129107628477e-3, 5.5504108664821576e-2, 2.402265069591007e-1, 6.931471805599453e-1, 1.0],
}  # fmt: skip


def _exp2(emit: Emit, x: ir.Value) -> ir.Value:
    """Emit 2**x for x <= 0: 0 below the smallest normal number, NaN for NaN."""
    builder = emit.builder
    bits, bias = (23, 127) if emit.itemsize == 4 else (52, 1023)
    low = emit.number(-float(bias))
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    # Adding 1.5 * 2**bits leaves round(x) in the low bits, where a shift makes it an exponent; -bias makes 0.
    magic = emit.number(1.5 * 2.0**bits)
    shifted = builder.fadd(x, magic)
    fraction = builder.fsub(x, builder.fsub(shifted, magic))
    exponent = builder.shl(builder.bitcast(shifted, emit.whole(0).type), emit.whole(bits))
    power = builder.bitcast(builder.add(exponent, emit.whole(bias << bits)), emit.vector)
    value: ir.Value = emit.number(_EXP2[emit.itemsize][0])
    for coefficient in _EXP2[emit.itemsize][1:]:
        value = emit.call("fma", value, fraction, emit.number(coefficient))
    return builder.fmul(value, power)


@intrinsic
def row_exp2(typing, like, row, vectors, shift):  # type: ignore[no-untyped-def]
    """Make each element x of a row 2**(x - shift), x <= shift, and return their sum."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _emit(builder, signature)
        shift = emit.splat(args[3])

        def step(index: ir.Value, total: list[ir.Value]) -> list[ir.Value]:
            at = builder.add(args[1], builder.mul(index, _I64(vector_bytes())))
            value = _exp2(emit, builder.fsub(emit.load(at), shift))
            emit.store(value, at)
            return [builder.fadd(total[0], value)]

        (total,) = emit.loop(args[2], [emit.number(0.0)], step)
        return emit.fold(total, builder.fadd)

    return like(like, types.int64, types.int64, like), codegen


@intrinsic
def row_grad(typing, like, grads, weights, vectors, delta):  # type: ignore[no-untyped-def]
    """Make each element g of a row w * (g - delta), and 0 where its weight w is 0, be g finite or not."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _emit(builder, signature)
        delta, zero = emit.splat(args[4]), emit.number(0.0)

        def step(index: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            offset = builder.mul(index, _I64(vector_bytes()))
            at = builder.add(args[1], offset)
            weight = emit.load(builder.add(args[2], offset))
            value = builder.fmul(weight, builder.fsub(emit.load(at), delta))
            emit.store(builder.select(builder.fcmp_ordered("==", weight, zero), zero, value), at)
            return []

        emit.loop(args[3], [], step)
        return context.get_dummy_value()

    return types.none(like, *(types.int64,) * 3, like), codegen


@intrinsic
def fetch_add(typing, address, amount):  # type: ignore[no-untyped-def]
    """Atomically add to the int64 at an address and return its old value: the work counter of the threads."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def contiguous(typing, array):  # type: ignore[no-untyped-def]
    """Return a pointer to an array's first element, for `numba.carray`: its elements stand side by side."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, args[0])
        return view.data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def borrowed(typing, array):  # type: ignore[no-untyped-def]
    """Return an array that owns nothing: passing it on counts no references, which threads would contend for.

    The caller must hold the array as long as the kernel runs.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = ir.Constant(view.meminfo.type, None)
        view.parent = ir.Constant(view.parent.type, None)
        return view._getvalue()

    return array(array), codegen

"""What the kernels share: matrix products that the interpreter computes too, and where a tile is not finite."""

from __future__ import annotations

import os

import triton
import triton.language as tl

#: Whether kernels run in Triton's interpreter, on the CPU: its bfloat16 dot is wrong, so operands are widened there.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return a @ b, accumulated in float32. PRECISION: what Triton makes products of float32 operands of."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def non_finite(x):
    """Return where x is NaN or infinite: x - x is 0 for every other number."""
    wide = x.to(tl.float32)
    return (wide - wide) != 0.0

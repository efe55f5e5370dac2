"""What the kernels share: exact matrix products, and operands that must not leak through a mask.

`tl.dot` multiplies everything: a masked pair has weight 0, but 0 * NaN is NaN. Where a tile holds pairs that do not
count, the products below therefore take non-finite operands out, and add them back only for the rows that see them.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

#: Whether kernels run in Triton's interpreter, on the CPU: its bfloat16 dot is wrong, so operands are widened there.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return a @ b, accumulated in float32. PRECISION: "ieee" or "tf32", of float32 operands."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def _non_finite(x):
    """Return where x is NaN or infinite: x - x is 0 for every other number."""
    y = x.to(tl.float32)
    return (y - y) != 0.0


@triton.jit
def weighted(weights, rows, PRECISION: tl.constexpr, MASKED: tl.constexpr):
    """Return weights @ rows, (M, N) @ (N, D); a row that is not finite counts only where its weight is not 0.

    MASKED says whether some weights are 0 because their pair does not count. `weights` come in float32 and are rounded
    to the dtype of `rows` for the product.
    """
    if MASKED:
        bad = _non_finite(rows)
        clean = tl.where(bad, tl.zeros_like(rows), rows)
        total = dot(weights.to(rows.dtype), clean, PRECISION)
        if tl.max(tl.max(bad.to(tl.int32), 1), 0) > 0:
            spoiled = tl.where(bad, rows, tl.zeros_like(rows)).to(tl.float32)
            columns = tl.arange(0, weights.shape[1])
            for j in range(weights.shape[1]):
                weight = tl.sum(tl.where(columns[None, :] == j, weights, 0.0), 1)
                row = tl.sum(tl.where(columns[:, None] == j, spoiled, 0.0), 0)
                total += tl.where(weight[:, None] != 0.0, weight[:, None] * row[None, :], 0.0)
        return total
    else:
        return dot(weights.to(rows.dtype), rows, PRECISION)

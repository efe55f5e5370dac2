"""The softmax of the backward, recomputed from the merged lse, and its derivative.

With `shift` and `delta` of `kernels/delta.py`: P = 2**lift * softmax = exp2(logits - shift), never above 2**lift,
and dS = P * (dP - delta), dP = d_out V^T. `lift` is 0 but for float16, whose smallest number is no smaller than many a
weight: there P is larger by 2**lift, and the results are divided by it.

dS has no such bounds, and float16 would lose the large as well as the small: its products run in tf32 instead, which
has the digits of float16 and the range of float32.

A product of matrices counts every pair: 0 * NaN is NaN. So where some pairs do not count, what is not finite must be
no operand. `shift` is NaN for a row whose q is not finite, or that sees a NaN key, and `delta` for one whose d_out is
not finite: P and dS of what the row sees are NaN by that alone, and its q and d_out are loaded as 0.

Source of the recomputation: FlashAttention, arXiv 2205.14135.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.tile import dot


@triton.jit
def slopes(logits, d_weights, shift, delta, seen, lift):
    """Return (P, dS), float32, both 0 for a pair that is not `seen`.

    Args:
        logits: products with q in powers of two, float32.
        d_weights: dP.
        shift, delta: of the rows, broadcast over the keys.
        seen: the pairs that count.
        lift: log2 of the most that P can be.
    """
    # The forward may have summed in another order: where logits are huge, rounding alone could make P overflow.
    exponent = tl.minimum(logits - shift, lift, propagate_nan=tl.PropagateNan.ALL)
    weights = tl.where(seen, tl.exp2(exponent), 0.0)
    # A pair without weight has no slope, be dP finite or not.
    return weights, tl.where(weights == 0.0, 0.0, weights * (d_weights - delta))


@triton.jit
def slope_product(slope, rows, PRECISION: tl.constexpr):
    """Return slope @ rows, (M, N) @ (N, D), in float32."""
    if rows.dtype == tl.float16:
        return dot(slope, rows.to(tl.float32), "tf32")
    else:
        return dot(slope.to(rows.dtype), rows, PRECISION)


@triton.jit
def finite(keys):
    """Return keys with NaN replaced by 0, and infinities by the largest number.

    A row that sees a NaN key has a NaN `shift`, and one that sees an infinite key either that or a weight of 0 for it.
    """
    largest = 3.4028234663852886e38
    if keys.dtype == tl.float16:
        largest = 65504.0
    elif keys.dtype == tl.bfloat16:
        largest = 3.3895313892515355e38
    wide = keys.to(tl.float32)
    wide = tl.minimum(tl.maximum(tl.where(wide == wide, wide, 0.0), -largest), largest)
    return wide.to(keys.dtype)

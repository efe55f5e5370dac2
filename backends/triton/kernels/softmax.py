"""The online softmax that every attention kernel runs: load rows, take one tile of keys in, finish.

Logits are kept as products with q; `scale`, log2(e) included and never negative, is applied inside the exponential,
where it costs nothing. The running maximum `top` is in scaled units, base 2.

A tile with pairs that do not count multiplies the values of all its keys with weights, 0 among them, and 0 * NaN is
NaN. There, values that are not finite are taken out, and added back afterwards, key by key, for the rows that see them:
what they do to a sum depends on no weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.tile import dot, non_finite

#: What a tile of keys may hold: only pairs that count; keys that are nobody's, loaded as 0; pairs that do not count.
EVERY = tl.constexpr(0)
KEYS = tl.constexpr(1)
PAIRS = tl.constexpr(2)


@triton.jit
def holds_non_finite(x):
    """Return 1 where a tile holds a number that is not finite, else 0."""
    return tl.max(tl.max(non_finite(x).to(tl.int32), 1), 0)


@triton.jit
def add_non_finite(acc, row, seen):
    """Add what is not finite of a row of values (1, Dv) to the rows of `acc` (M, Dv) that see it, `seen` (M, 1)."""
    return acc + tl.where(seen & non_finite(row), row.to(tl.float32), 0.0)


@triton.jit
def load_rows(base, rows, stride, stride_d, valid, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHECKED: tl.constexpr):
    """Return rows (N, BLOCK) of `base`, columns beyond WIDTH and, where CHECKED, rows that are not `valid` as 0."""
    columns = tl.arange(0, BLOCK)
    places = base + rows[:, None] * stride + columns[None, :] * stride_d
    if CHECKED:
        if WIDTH == BLOCK:
            return tl.load(places, mask=valid[:, None], other=0.0)
        else:
            return tl.load(places, mask=valid[:, None] & (columns < WIDTH)[None, :], other=0.0)
    else:
        if WIDTH == BLOCK:
            return tl.load(places)
        else:
            return tl.load(places, mask=(columns < WIDTH)[None, :], other=0.0)


@triton.jit
def empty_state(ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (acc, total, top) of rows that have seen no key."""
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    return acc, total, top


@triton.jit
def take_in(acc, total, top, queries, keys, values, seen, scale, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """Take a tile of keys into the running softmax; where MASK is PAIRS, without values that are not finite.

    Args:
        acc: (M, Dv) sum of weights times values, relative to `top`.
        total: (M,) sum of weights.
        top: (M,) largest scaled logit so far, -inf for none.
        queries, keys, values: (M, D), (N, D), (N, Dv).
        seen: (M, N) or (1, N), the pairs that count; read unless MASK is EVERY.
        scale: factor on the logits, not negative.
        MASK: what the tile may hold.
        PRECISION: of float32 products.
    """
    logits = dot(queries, tl.trans(keys), PRECISION)
    if MASK == EVERY:
        largest = tl.max(logits, 1)
    else:
        largest = tl.max(tl.where(seen, logits, float("-inf")), 1)
    new = tl.maximum(top, largest * scale)
    # A row without keys, or with NaN alone, has no maximum: any finite number does.
    base = tl.where(new == float("-inf"), 0.0, new)
    # A logit that does not count may be larger, or NaN: it goes out after the exponential, which both ways share.
    weights = tl.exp2(logits * scale - base[:, None])
    if MASK != EVERY:
        weights = tl.where(seen, weights, 0.0)
    if MASK == PAIRS:
        values = tl.where(non_finite(values), tl.zeros_like(values), values)
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + dot(weights.to(values.dtype), values, PRECISION)
    return acc, total, new


@triton.jit
def finish(acc, total, top):
    """Return (out, lse): normalised output and base-2 log of the sum of exponentials; 0 and -inf without keys."""
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    # NaN logits alone leave no maximum: the sum, NaN, says it all.
    base = tl.where(top == float("-inf"), 0.0, top)
    return out, tl.where(empty, float("-inf"), base + tl.log2(total))

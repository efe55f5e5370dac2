"""What the backward needs of each row besides its inputs."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.softmax import load_rows

#: log2(e), from natural logarithms to powers of two.
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_constants(
    q, out, d_out, lse, d_lse, shift, delta,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_rb, stride_rl, stride_rh, stride_rd,
    stride_ob, stride_ol, stride_oh, stride_od, stride_lb, stride_lh, stride_ll, stride_dlb, stride_dlh, stride_dll,
    rows_all, lift,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, HAS_D_LSE: tl.constexpr,
):  # fmt: skip
    """Write shift = lse * log2(e) - lift and delta = sum(d_out * out) - d_lse; -inf and 0 where a row sees no key.

    The weights of the backward are exp2(logits - shift), 2**lift times the softmax: see `kernels/slopes.py`. shift is
    NaN where q is not finite, delta where d_out is not.

    Grid (ceil(rows_all / BLOCK_M), heads, batch).

    Args:
        q: (batch, rows, heads, head_dim), any strides.
        out, d_out: (batch, rows, heads, v_head_dim), any strides.
        lse, d_lse: float32 (batch, heads, rows), any strides; natural log. d_lse is read where HAS_D_LSE.
        shift, delta: float32 (batch, heads, rows).
        lift: see `kernels/slopes.py`.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = rows < rows_all
    at = rows.to(tl.int64)
    log_sum = tl.load(lse + batch * stride_lb + head * stride_lh + at * stride_ll, mask=own, other=float("-inf"))
    # A padded row sees no key either: whatever stands in its d_out and d_lse is not looked at.
    sees = log_sum != float("-inf")
    q += batch * stride_qb + head * stride_qh
    queries = load_rows(q, at, stride_ql, stride_qd, sees, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    log_sum += tl.sum(queries - queries, 1)
    out += batch * stride_rb + head * stride_rh
    d_out += batch * stride_ob + head * stride_oh
    outs = load_rows(out, at, stride_rl, stride_rd, sees, V_HEAD_DIM, BLOCK_DV, True).to(tl.float32)
    d_outs = load_rows(d_out, at, stride_ol, stride_od, sees, V_HEAD_DIM, BLOCK_DV, True).to(tl.float32)
    # x - x is 0, and NaN for what is not finite.
    total = tl.sum(outs * d_outs + (d_outs - d_outs), 1)
    if HAS_D_LSE:
        total -= tl.load(d_lse + batch * stride_dlb + head * stride_dlh + at * stride_dll, mask=sees, other=0.0)
    place = (batch * tl.num_programs(1) + head) * rows_all + at
    tl.store(shift + place, log_sum * LOG2_E - lift, mask=own)
    tl.store(delta + place, total, mask=own)

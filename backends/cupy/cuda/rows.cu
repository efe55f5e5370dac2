// What the backward needs of each row besides its inputs:
//
//   shift = lse log2(e) - lift,  delta = sum(d_out * out) - d_lse,
//
// -infinity and 0 where a row sees no key. The weights of the backward are 2^(logit - shift), see slopes.cuh. shift is
// NaN where q is not finite, delta where d_out is not.
//
// Constants: THREADS; ELEMENT (half_t, bfloat_t or float); WIDTH_BLOCK (64, 128 or 256), at least head_dim and
// v_head_dim.
#include "vectors.cuh"

// Threads that share a row, eight columns each, and the rows of a block.
constexpr int LANES = WIDTH_BLOCK / 8;
constexpr int ROWS = THREADS / LANES;
static_assert(32 % LANES == 0 && THREADS % 32 == 0, "a row stays within a warp");
constexpr float LOG2_E = 1.4426950408889634f;

DEVICE void load_columns(float (&x)[8], const Rows<ELEMENT>& from, int row, int column) {
    if (from.aligned) {
        load_eight<true>(x, from, row, column);
    } else {
        load_eight<false>(x, from, row, column);
    }
}

// Of all threads that share a row, in a fixed order.
DEVICE float row_sum(float x) {
#pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2) x += shuffle_xor(x, distance);
    return x;
}

// Grid (ceil(rows / ROWS), heads, batch).
//
//   q            (batch, rows, heads, head_dim), any strides
//   out, d_out   (batch, rows, heads, v_head_dim), any strides
//   lse, d_lse   float32 (batch, heads, rows), any strides; natural log. d_lse may be null
//   shift, delta float32 (batch, heads, rows), contiguous
KERNEL(row_constants)(const ELEMENT* q, const ELEMENT* out, const ELEMENT* d_out, const float* lse, const float* d_lse,
                      float* shift, float* delta, i64 stride_qb, i64 stride_ql, i64 stride_qh, i64 stride_qd,
                      i64 stride_rb, i64 stride_rl, i64 stride_rh, i64 stride_rd, i64 stride_ob, i64 stride_ol,
                      i64 stride_oh, i64 stride_od, i64 stride_lb, i64 stride_lh, i64 stride_ll, i64 stride_gb,
                      i64 stride_gh, i64 stride_gl, int aligned_q, int aligned_r, int aligned_o, int head_dim,
                      int v_head_dim, int rows, float lift) {
    const int head = block_y(), batch = block_z();
    const int row = block_x() * ROWS + thread_index() / LANES, column = thread_index() % LANES * 8;
    const Rows<ELEMENT> queries{q + batch * stride_qb + head * stride_qh, stride_ql, stride_qd, head_dim,
                                aligned_q != 0};
    const Rows<ELEMENT> outs{out + batch * stride_rb + head * stride_rh, stride_rl, stride_rd, v_head_dim,
                             aligned_r != 0};
    const Rows<ELEMENT> grads{d_out + batch * stride_ob + head * stride_oh, stride_ol, stride_od, v_head_dim,
                              aligned_o != 0};
    const float log_sum = row < rows ? lse[batch * stride_lb + head * stride_lh + row * stride_ll] : -infinity();
    float spoiled = 0.0f, total = 0.0f;
    // A padded row sees no key either: whatever stands in its q, d_out and d_lse is not looked at.
    const bool sees = log_sum != -infinity();
    if (sees) {
        float x[8], y[8];
        load_columns(x, queries, row, column);
#pragma unroll
        for (int i = 0; i < 8; ++i) spoiled += x[i] - x[i];  // 0, and NaN for what is not finite
        load_columns(x, outs, row, column);
        load_columns(y, grads, row, column);
#pragma unroll
        for (int i = 0; i < 8; ++i) total += x[i] * y[i] + (y[i] - y[i]);
    }
    spoiled = row_sum(spoiled);
    total = row_sum(total);
    if (row >= rows || column != 0) return;
    if (sees && d_lse != nullptr) total -= d_lse[batch * stride_gb + head * stride_gh + row * stride_gl];
    const i64 place = (i64(batch) * grid_y() + head) * rows + row;
    shift[place] = log_sum * LOG2_E - lift + spoiled;
    delta[place] = total;
}

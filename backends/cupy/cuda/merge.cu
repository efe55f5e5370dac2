// Partial results merged by their lse, in a fixed order: the anchors' first, then the routes by slot.
//
//   out[row] = sum_p 2^(lse_p - lse) out_p,  lse = log2 sum_p 2^lse_p
//
// Constants: ELEMENT, VALUE_BLOCK.
#include "partials.cuh"

// Numbers of a row that a thread merges: one vector.
constexpr int VECTOR = 16 / int(sizeof(ELEMENT)), VECTORS = VALUE_BLOCK / VECTOR;
// Rows that a block merges at a time.
constexpr int ROWS = THREADS / VECTORS;
// Numbers to a tile of rows, see planning/query_tiles.py: first row, rows, first part, end of parts.
constexpr int TILE = 4;
constexpr float LOG_2 = 0.6931471805599453f;

// The merged result of a row: a running sum of exponentials, then a weighted sum of vectors.
struct Merged {
    float top, total;
    float sums[VECTOR];

    DEVICE void grow(float log_sum) {
        const float next = larger(top, log_sum);
        const float base = next == -infinity() ? 0.0f : next;
        // A NaN is no maximum, but it is in the sum.
        total = total * exp2_fast(top - base) + exp2_fast(log_sum - base);
        top = next;
    }
    DEVICE float base() const { return top == -infinity() ? 0.0f : top; }
    DEVICE void add(float log_sum, const ELEMENT* part) {
        if (log_sum == -infinity()) return;  // nothing was written there
        const float weight = exp2_fast(log_sum - base());
        const Vector vector = *reinterpret_cast<const Vector*>(part);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sums[i] += weight * item_of(vector, i, part);
    }
};

// Say of every place that nothing was written there. Grid (blocks, 1, 1); lse: float32 (count,).
KERNEL(clear_places)(float* lse, i64 count) {
    for (i64 place = i64(block_x()) * THREADS + thread_index(); place < count; place += i64(grid_x()) * THREADS)
        lse[place] = -infinity();
}

// Grid (tiles * ceil(most rows of a tile / ROWS), heads, batch).
//
//   tiles, parts             see planning/query_tiles.py: the place of row r in part p is parts[p] + r
//   anchor_out, anchor_lse   partial results of the anchors, (batch, heads, anchor_places, width) and (..., anchor_places)
//   routed_out, routed_lse   those of the routes, (batch, heads, rows, slots, width) and (batch, heads, rows, slots)
//   out                      (batch, rows, heads, v_head_dim), any strides but a dense last axis; 0 without keys
//   lse                      float32 (batch, heads, rows), the last axis dense, natural log; -infinity without keys
KERNEL(merge)(const int* tiles, const int* parts, const ELEMENT* anchor_out, const float* anchor_lse,
              const ELEMENT* routed_out, const float* routed_lse, ELEMENT* out, float* lse, i64 stride_ob, i64 stride_ol,
              i64 stride_oh, i64 stride_lb, i64 stride_lh, int pieces, int rows, int anchor_places, int slots, int width,
              int v_head_dim) {
    const int* tile = tiles + block_x() / pieces * TILE;
    const int place = block_x() % pieces * ROWS + thread_index() / VECTORS, column = thread_index() % VECTORS * VECTOR;
    if (place >= tile[1] || column >= width) return;
    const int row = tile[0] + place, part_lo = tile[2], part_hi = tile[3];
    const i64 lane = i64(block_z()) * grid_y() + block_y();
    anchor_lse += lane * anchor_places + row;
    anchor_out += (lane * anchor_places + row) * width + column;
    routed_lse += (lane * rows + row) * slots;
    routed_out += (lane * rows + row) * slots * width + column;

    Merged merged{-infinity(), 0.0f, {}};
    for (int part = part_lo; part < part_hi; ++part) merged.grow(anchor_lse[parts[part]]);
    for (int slot = 0; slot < slots; ++slot) merged.grow(routed_lse[slot]);
    for (int part = part_lo; part < part_hi; ++part)
        merged.add(anchor_lse[parts[part]], anchor_out + i64(parts[part]) * width);
    for (int slot = 0; slot < slots; ++slot) merged.add(routed_lse[slot], routed_out + i64(slot) * width);

    const bool empty = merged.total == 0.0f;
    const float factor = 1.0f / (empty ? 1.0f : merged.total);
    out += block_z() * stride_ob + row * stride_ol + block_y() * stride_oh;
    for (int i = 0; i < VECTOR; ++i)
        if (column + i < v_head_dim) out[column + i] = Element<ELEMENT>::from(merged.sums[i] * factor);
    if (column == 0)
        lse[block_z() * stride_lb + block_y() * stride_lh + row] =
            empty ? -infinity() : (merged.base() + log2_of(merged.total)) * LOG_2;
}

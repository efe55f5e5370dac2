// Means: of the valid keys of each chunk, m_c = (sum of keys) / count, and of the valid queries of each routing unit.
//
// Sums are float32, in an order that depends on the number of rows alone, and are rounded once more by the division: a
// mean that float32 holds exactly comes out exactly, for ties to be ties. Rows that are padding are never read.
//
// Constants: THREADS; ELEMENT (half_t, bfloat_t or float), of the rows; HEAD_BLOCK (64, 128 or 256), at least head_dim;
// SHARED_BYTES = THREADS * 8 * 4.
#include "units.cuh"
#include "vectors.cuh"

// Threads side by side, each with eight columns, that take one row; such stripes of threads take rows in turn.
constexpr int COLUMNS = HEAD_BLOCK / 8;
constexpr int STRIPES = THREADS / COLUMNS;
static_assert(THREADS % COLUMNS == 0, "stripes of threads take whole rows");
static_assert(STRIPES * HEAD_BLOCK * 4 == SHARED_BYTES, "the sums of all stripes lie in shared memory");

// Add up the rows lo + stripe, lo + stripe + STRIPES, ... below hi.
template <bool ALIGNED>
DEVICE void add_rows(float (&total)[8], const Rows<ELEMENT>& from, int lo, int hi, int stripe, int column) {
#pragma unroll 4
    for (int row = lo + stripe; row < hi; row += STRIPES) {
        float x[8];
        load_eight<ALIGNED>(x, from, row, column);
#pragma unroll
        for (int i = 0; i < 8; ++i) total[i] += x[i];
    }
}

// Write the mean of the rows lo ... hi - 1, 0 where there are none. All threads of the block call it.
DEVICE void write_mean(float* out, const Rows<ELEMENT>& from, int lo, int hi) {
    SHARED_MEMORY(memory);
    float* sums = reinterpret_cast<float*>(memory);
    const int stripe = thread_index() / COLUMNS, column = thread_index() % COLUMNS * 8;
    float total[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (column < from.width) {
        if (from.aligned) {
            add_rows<true>(total, from, lo, hi, stripe, column);
        } else {
            add_rows<false>(total, from, lo, hi, stripe, column);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[stripe * HEAD_BLOCK + column + i] = total[i];
    sync_block();
    for (int dim = thread_index(); dim < from.width; dim += THREADS) {
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < STRIPES; ++s) sum += sums[s * HEAD_BLOCK + dim];
        out[dim] = sum / float(larger(hi - lo, 1));
    }
}

// The mean valid key of each chunk. Grid (chunks, kv_heads, batch).
//
// k: (batch, tokens, kv_heads, head_dim), any strides; aligned_k: see Rows.
// chunk_lo: int32 (chunks,), first key of each chunk; stops: int32 (batch or 1, chunks), end of the valid ones.
// centroids: float32 (batch, kv_heads, chunks, head_dim), contiguous.
KERNEL(pool)(const ELEMENT* k, const int* chunk_lo, const int* stops, float* centroids, i64 stride_kb, i64 stride_kl,
             i64 stride_kh, i64 stride_kd, i64 stride_stops, int head_dim, int aligned_k) {
    const int chunk = block_x(), head = block_y(), batch = block_z();
    const ELEMENT* base = k + batch * stride_kb + head * stride_kh;
    const Rows<ELEMENT> keys{base, stride_kl, stride_kd, head_dim, aligned_k != 0};
    float* out = centroids + ((i64(batch) * grid_y() + head) * grid_x() + chunk) * head_dim;
    write_mean(out, keys, chunk_lo[chunk], stops[batch * stride_stops + chunk]);
}

// The mean valid query of each routing unit. Grid (units, heads, batch).
//
// q: (batch, rows, heads, head_dim), any strides; aligned_q: see Rows.
// unit_row, unit_rows, unit_run, unit_runs: int32 (units,), see `geometry.Units`; run_chunk: int32 (runs,).
// means: float32 (batch, heads, units, head_dim), contiguous.
KERNEL(pool_units)(const ELEMENT* q, const int* unit_row, const int* unit_rows, const int* unit_run,
                   const int* unit_runs, const int* run_chunk, const int* stops, float* means, i64 stride_qb,
                   i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_stops, int head_dim, int q_start,
                   int aligned_q) {
    const int number = block_x(), head = block_y(), batch = block_z();
    const int* own_stops = stops + batch * stride_stops;
    const Unit unit =
        unit_at(UnitTables{unit_row, unit_rows, unit_run, unit_runs, run_chunk, own_stops, grid_x(), q_start}, number);
    const ELEMENT* base = q + batch * stride_qb + head * stride_qh;
    const Rows<ELEMENT> queries{base, stride_ql, stride_qd, head_dim, aligned_q != 0};
    float* out = means + ((i64(batch) * grid_y() + head) * grid_x() + number) * head_dim;
    write_mean(out, queries, unit.row, unit.row_hi);
}

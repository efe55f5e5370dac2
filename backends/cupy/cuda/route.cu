// Routing: scores against centroids, the candidate mask and a running top-k in one pass over tiles of centroids.
//
//     s(u, j) = <query of unit u, m_j>; the top_k candidates of highest score; ties to the lower chunk, NaN first.
//
// Scores must be right to float32 whatever the dtype, at the speed of the tensor cores: queries and centroids are cut
// into bfloat16 pieces, products of pieces are exact, and terms below 2^-24 of the largest are left out. What reaches
// global memory are the chunks, never a score.
//
// A warp holds 16 units, and all warps of a block take the same tile of centroids. Scores stay in the accumulators:
// most of them are below the worst one of their row's list and go no further. Where a warp has others, it lays its
// scores down in shared memory, and one lane of each row takes that row's into its list, lower chunks first.
//
// Constants: THREADS, 32 to a warp; ELEMENT (half_t, bfloat_t or float), of the queries; QUERY_PIECES that hold one
// (bfloat_t 1, half_t 2, float 3); HEAD_BLOCK (64, 128 or 256), at least head_dim; CHUNKS (16 or 32), centroids to a
// tile; LIST_SLOTS, a power of two, at least every top_k; SHARED_BYTES = Layout::BYTES.
#include "best.cuh"
#include "candidates.cuh"
#include "vectors.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int UNITS = WARPS * 16;
constexpr int COLUMN_TILES = CHUNKS / 8;
// Pieces of a centroid.
constexpr int PLANES = 3;
// Rows of scores are padded so that pairs of them are written without bank conflicts.
constexpr int SCORE_STRIDE = CHUNKS + 8;
static_assert(CHUNKS == 16 || CHUNKS == 32, "a tile lies in one word of the candidates' bits");
constexpr u32 TILE_BITS = ~0u >> (32 - CHUNKS);

using QueryTile = Tile<bfloat_t, UNITS, HEAD_BLOCK>;
using MeanTile = Tile<bfloat_t, CHUNKS, HEAD_BLOCK>;

struct Layout {
    static constexpr int QUERIES = 0;
    static constexpr int MEANS = QUERIES + QUERY_PIECES * QueryTile::BYTES;
    static constexpr int SCORES = MEANS + 2 * PLANES * MeanTile::BYTES;
    static constexpr int LISTS = SCORES + UNITS * SCORE_STRIDE * 4;
    static constexpr int BYTES = LISTS + UNITS * LIST_SLOTS * 8;
};
static_assert(Layout::BYTES == SHARED_BYTES, "the host counts alike");

DEVICE QueryTile query_tile(unsigned char* memory, int piece) {
    return {reinterpret_cast<bfloat_t*>(memory + Layout::QUERIES + piece * QueryTile::BYTES)};
}
// One of two tiles of centroids: while one is multiplied with, the next one comes into the other.
DEVICE MeanTile mean_tile(unsigned char* memory, int stage, int plane) {
    return {reinterpret_cast<bfloat_t*>(memory + Layout::MEANS + (stage * PLANES + plane) * MeanTile::BYTES)};
}

// ---- order of scores ------------------------------------------------------------------------------------------------
// Orders as scores do: -0 as 0, NaN above all; at least 1.
DEVICE u32 rank_of(float score) {
    if (score != score) return 0xffffffffu;
    const u32 bits = bits_of(score == 0.0f ? 0.0f : score);
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// The least score that may be better than a key: every other one is not. Where the key is of NaN only NaN may, which
// passes every comparison; where the slot is free all may.
DEVICE float threshold_of(u64 key) {
    const u32 rank = u32(key >> 32);
    if (key == FREE) return -infinity();
    if (rank == 0xffffffffu) return infinity();
    return float_of((rank >> 31) != 0 ? rank & 0x7fffffffu : ~rank);
}

// ---- scores ---------------------------------------------------------------------------------------------------------
using Accumulators = float[COLUMN_TILES][4];

// c += q m for all column tiles; each is added to once, so that the products do not wait for each other.
DEVICE void multiply_tiles(Accumulators& c, const BfloatProduct::A& q, const BfloatProduct::B (&m)[COLUMN_TILES]) {
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) BfloatProduct::multiply(c[n], q, m[n]);
}

// The scores of the 16 units of a warp against a tile of centroids. Small terms first, the largest apart. Where the
// largest is not finite it is the score: a small one may be infinity times a piece that is 0.
DEVICE void compute_scores(Accumulators& score, unsigned char* memory, int stage, int row) {
    Accumulators small;
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[n][i] = small[n][i] = 0.0f;
#pragma unroll 2
    for (int k = 0; k < HEAD_BLOCK; k += 16) {
        BfloatProduct::A q[QUERY_PIECES];
        BfloatProduct::B m[PLANES][COLUMN_TILES];
#pragma unroll
        for (int i = 0; i < QUERY_PIECES; ++i) BfloatProduct::load_a(q[i], query_tile(memory, i), row, k);
#pragma unroll
        for (int i = 0; i < PLANES; ++i)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n += 2)
                BfloatProduct::load_b(m[i][n], m[i][n + 1], mean_tile(memory, stage, i), 8 * n, k);
        multiply_tiles(small, q[0], m[2]);
        if constexpr (QUERY_PIECES >= 3) multiply_tiles(small, q[2], m[0]);
        if constexpr (QUERY_PIECES >= 2) multiply_tiles(small, q[1], m[1]);
        if constexpr (QUERY_PIECES >= 2) multiply_tiles(small, q[1], m[0]);
        multiply_tiles(small, q[0], m[1]);
        multiply_tiles(score, q[0], m[0]);
    }
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[n][i] += finite(score[n][i]) ? small[n][i] : 0.0f;
}

// ---- the running lists ----------------------------------------------------------------------------------------------
// What a warp keeps of its 16 units. In the accumulators a lane has columns 2t, 2t + 1 of the rows g and g + 8. One of
// the two rows is its own: lanes with t = 0 keep the list of row g, those with t = 1 that of row g + 8.
struct Selector {
    CandidateTables tables;
    Unit unit;          // of the lane's own row
    float* scores;      // of the warp, 16 rows
    BestList<16> list;  // of the lane's own row
    const u64* lists;   // first slots of the warp's rows
    float worst[2];     // of rows g and g + 8: what is less is not better than any of the list

    DEVICE static int own_row() { return lane_index() / 4 + lane_index() % 2 * 8; }

    // The columns of the lane with a score that may enter the list of row g (half 0) or g + 8 (half 1), as bits.
    DEVICE u32 better(const Accumulators& score, int half) const {
        u32 found = 0;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) found |= u32(!(score[n][2 * half + i] < worst[half])) << (8 * n + i);
        return found << (2 * (lane_index() % 4));
    }

    // Take the better scores into the lists. All lanes of the warp call it; `start` is the chunk of column 0, `own`
    // holds the columns that are candidates of the lane's own row.
    DEVICE void select(const Accumulators& score, int start, u32 own) {
        const bool odd = lane_index() % 2 != 0;
        const u32 other = u32(shuffle_xor(int(own), 1));
        u32 low = better(score, 0) & (odd ? other : own), high = better(score, 1) & (odd ? own : other);
        if (!warp_any((low | high) != 0)) return;

        const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[(g + i / 2 * 8) * SCORE_STRIDE + 8 * n + 2 * t + i % 2] = score[n][i];
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            low |= u32(shuffle_xor(int(low), mask));
            high |= u32(shuffle_xor(int(high), mask));
        }
        sync_warp();
        if (t < 2) insert(odd ? high : low, start);
        sync_warp();
        worst[0] = threshold_of(lists[g]);
        worst[1] = threshold_of(lists[g + 8]);
    }

    // Take the scores of some columns of the lane's own row into its list.
    DEVICE void insert(u32 columns, int start) const {
        const float* row = scores + own_row() * SCORE_STRIDE;
        for (; columns != 0; columns &= columns - 1) {
            const int column = count_bits((columns & (0u - columns)) - 1);
            const u64 key = key_of(rank_of(row[column]), start + column);
            if (key <= list.worst()) continue;
            // Token windows are looked at for the few scores that come so far.
            if (tables.near == 0 || tables.takes(unit, start + column)) list.offer(key);
        }
    }
};

// ---- the kernel -----------------------------------------------------------------------------------------------------
// Cut the queries of the units first ... first + UNITS - 1 into pieces in shared memory, 0 beyond the last unit.
DEVICE void cut_queries(unsigned char* memory, const Rows<ELEMENT>& queries, int first, int units) {
    constexpr int COLUMNS = HEAD_BLOCK / 8;
    for (int place = thread_index(); place < UNITS * COLUMNS; place += THREADS) {
        const int row = place / COLUMNS, column = place % COLUMNS * 8;
        float x[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        if (first + row < units) load_eight(x, queries, first + row, column);
        Vector pieces[QUERY_PIECES];
        cut_eight(pieces, x);
#pragma unroll
        for (int i = 0; i < QUERY_PIECES; ++i)
            *reinterpret_cast<Vector*>(query_tile(memory, i).at(row, column)) = pieces[i];
    }
}

// Start to copy a tile of centroids.
DEVICE void copy_means(unsigned char* memory, int stage, const bfloat_t* planes, i64 plane, int start) {
#pragma unroll
    for (int i = 0; i < PLANES; ++i) {
        const Rows<bfloat_t> rows{planes + i * plane, HEAD_BLOCK, 1, HEAD_BLOCK, true};
        load_rows(mean_tile(memory, stage, i), rows, [=](int r) { return start + r; });
    }
    commit_copies();
}

// Select the top_k candidates of UNITS routing units. Grid (ceil(units / UNITS), heads, batch).
//
// q: (batch, units, heads, head_dim), any strides: the query of each unit; aligned_q: see Rows.
// planes: bfloat16 (batch, kv_heads, 3, planes_chunks, HEAD_BLOCK), see split.cu; CHUNKS divides planes_chunks.
// unit_row, unit_rows, unit_run, unit_runs: int32 (units,), see `geometry.Units`.
// run_lo, run_hi, run_chunk, run_base: int32 (runs,), see `geometry.Runs`; near_first: int32 (runs,).
// stops: int32 (batch or 1, chunks), end of the valid positions of each chunk.
// bits, first, last: see `Candidates` of candidates.py.
// envelope: int32 (tiles, 2), for each block the range of chunks that holds its candidates; CHUNKS divides its first.
// top_k: int32 (heads,), at most LIST_SLOTS and `slots`.
// selected: int32 (batch, heads, rows, slots), contiguous; every element is written.
KERNEL(route)(const ELEMENT* q, const bfloat_t* planes, const int* unit_row, const int* unit_rows, const int* unit_run,
              const int* unit_runs, const int* run_lo, const int* run_hi, const int* run_chunk, const int* run_base,
              const int* near_first, const int* stops, const int* bits, const int* first, const int* last,
              const int* envelope, const int* top_k, int* selected, i64 stride_qb, i64 stride_ql, i64 stride_qh,
              i64 stride_qd, i64 stride_stops, i64 stride_bits, i64 stride_near, int units, int rows,
              int planes_chunks, int words, int near, int reach, int q_start, int slots, int group, int head_dim,
              int aligned_q) {
    SHARED_MEMORY(memory);
    // The last tiles first: under causality they have the most candidates.
    const int tile = grid_x() - 1 - block_x(), head = block_y(), warp = warp_index();
    const i64 batch = block_z();
    const int count = top_k[head], begin = envelope[2 * tile], end = count > 0 ? envelope[2 * tile + 1] : begin;

    const i64 plane = i64(planes_chunks) * HEAD_BLOCK;
    const bfloat_t* own_planes = planes + (batch * (grid_y() / group) + head / group) * PLANES * plane;
    if (begin < end) copy_means(memory, 0, own_planes, plane, begin);
    const ELEMENT* base = q + batch * stride_qb + head * stride_qh;
    cut_queries(memory, Rows<ELEMENT>{base, stride_ql, stride_qd, head_dim, aligned_q != 0}, tile * UNITS, units);

    const CandidateTables tables{run_lo, run_hi, bits + batch * stride_bits, first + batch * stride_near,
                                 last + batch * stride_near, near_first, words, near, reach, q_start};
    const UnitTables unit_tables{unit_row, unit_rows, unit_run, unit_runs, run_chunk, stops + batch * stride_stops,
                                 units, q_start};
    const Unit unit = unit_at(unit_tables, tile * UNITS + warp * 16 + Selector::own_row());
    u64* lists = reinterpret_cast<u64*>(memory + Layout::LISTS) + warp * 16 * LIST_SLOTS;
    for (int i = lane_index(); i < 16 * LIST_SLOTS; i += 32) lists[i] = FREE;
    float* scores = reinterpret_cast<float*>(memory + Layout::SCORES) + warp * 16 * SCORE_STRIDE;
    Selector selector{tables, unit, scores, {lists + Selector::own_row(), count}, lists, {-infinity(), -infinity()}};

    int stage = 0;
    for (int start = begin; start < end; start += CHUNKS) {
        wait_copies<0>();
        sync_block();  // the tile is there for all, and all are done with the one before
        if (start + CHUNKS < end) copy_means(memory, 1 - stage, own_planes, plane, start + CHUNKS);
        const u32 shown = tables.word_of(unit, start / 32) >> (start % 32) & TILE_BITS;
        if (warp_any(shown != 0)) {
            Accumulators score;
            compute_scores(score, memory, stage, warp * 16);
            selector.select(score, start, shown);
        }
        stage = 1 - stage;
    }

    order_chunks<16, LIST_SLOTS>(lists);
    int* out = selected + (batch * grid_y() + head) * rows * slots;
    const int own_base = run_base[unit.run];
    for (int r = 0; r < 16; ++r) {
        const int lane = r % 8 * 4 + r / 8;  // one whose own row is r
        const Unit of_row{shuffle(unit.row, lane), shuffle(unit.count, lane), shuffle(unit.row_hi, lane), 0, 0};
        write_rows<16, LIST_SLOTS>(out, lists, r, of_row, shuffle(own_base, lane), slots);
    }
}

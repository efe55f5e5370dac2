// Gradients of queries, query-stationary, as the forward takes its pairs: tiles of rows meet their anchors, and
// gathered rows the chunk that they chose.
//
//   part[h, place] = dS K over the keys of an item, or of a chunk, that the row sees; dS of slopes.cuh
//
// Each row writes float32 partial sums to places of its own, which `join_query_grads` (joins.cu) adds in order.
//
// Constants: ELEMENT, HEAD_BLOCK, VALUE_BLOCK, BLOCK_KEYS, WARP_ROW_TILES, PIECES_OF_FLOAT; see softmax.cuh.
#include "coverage.cuh"
#include "entries.cuh"
#include "search.cuh"
#include "slopes.cuh"
#include "stores.cuh"

using S = Shape<ELEMENT, THREADS / 32, WARP_ROW_TILES, BLOCK_KEYS, HEAD_BLOCK, VALUE_BLOCK, PIECES_OF_FLOAT>;
using Product = typename GradProducts<ELEMENT, PIECES_OF_FLOAT>::Pair;
using SlopeProduct = typename GradProducts<ELEMENT, PIECES_OF_FLOAT>::Slope;
using QueriesTile = Tile<ELEMENT, S::ROWS, HEAD_BLOCK>;
using GradsTile = Tile<ELEMENT, S::ROWS, VALUE_BLOCK>;
using Pairs = float[WARP_ROW_TILES][S::KEY_COLUMNS][4];
using Sums = float[WARP_ROW_TILES][HEAD_BLOCK / 8][4];
constexpr int TILE_BYTES = QueriesTile::BYTES + GradsTile::BYTES + S::KeysTile::BYTES + S::ValuesTile::BYTES;
// Tiles of keys that are known: the current one, the next, and the one after it.
constexpr int AHEAD = 3;
constexpr int WORK_AT = TILE_BYTES + 16 * S::ROWS;
static_assert(WORK_AT + int(sizeof(EntryTiles)) + AHEAD * int(sizeof(KeyTile)) == SHARED_BYTES,
              "the host allots what the tiles take");

// Tiles in shared memory, and of each row of the block its constants, infinity and 0 for none or one that sees no key;
// its number, -1 for such a one; and its place.
struct Tiles {
    unsigned char* memory;

    DEVICE QueriesTile queries() const { return QueriesTile{reinterpret_cast<ELEMENT*>(memory)}; }
    DEVICE GradsTile grads() const { return GradsTile{reinterpret_cast<ELEMENT*>(memory + QueriesTile::BYTES)}; }
    DEVICE typename S::KeysTile keys() const {
        return {reinterpret_cast<ELEMENT*>(memory + QueriesTile::BYTES + GradsTile::BYTES)};
    }
    DEVICE typename S::ValuesTile values() const {
        return {reinterpret_cast<ELEMENT*>(memory + QueriesTile::BYTES + GradsTile::BYTES + S::KeysTile::BYTES)};
    }
    // shift and delta
    DEVICE Pair& constants(int r) const { return reinterpret_cast<Pair*>(memory + TILE_BYTES)[r]; }
    DEVICE int& row(int r) const { return reinterpret_cast<int*>(memory + TILE_BYTES + 8 * S::ROWS)[r]; }
    DEVICE int& place(int r) const { return reinterpret_cast<int*>(memory + TILE_BYTES + 12 * S::ROWS)[r]; }
    DEVICE EntryTiles& work() const { return *reinterpret_cast<EntryTiles*>(memory + WORK_AT); }
    DEVICE KeyTile& tile(int number) const {
        return reinterpret_cast<KeyTile*>(memory + WORK_AT + int(sizeof(EntryTiles)))[number % AHEAD];
    }
};

// What both kernels are given, at a batch row and head.
struct Arrays {
    Rows<ELEMENT> q, d_out, k, v;
    const float* shift;
    const float* delta;
    float* out;  // of the places
    int width;   // of a place
    float scale, lift;
};

// Keep a row of the block, and return whether it sees a key. Called by the warp that holds it.
DEVICE bool keep_row(const Tiles& tiles, int r, int number, int place, const Arrays& arrays) {
    // A row without keys, or padding, may hold anything.
    const bool sees = number >= 0 && arrays.shift[number] != -infinity();
    tiles.constants(r) = sees ? Pair{arrays.shift[number], arrays.delta[number]} : Pair{infinity(), 0.0f};
    tiles.row(r) = sees ? number : -1;
    tiles.place(r) = place;
    return sees;
}

// Sum over every tile of keys of the work at hand. The rows of the block are kept, and their arrays on the way.
//
// The values of a tile arrive while the one before is summed, its keys while dP is computed.
template <class Seen>
DEVICE void sum_keys(Sums& sums, const Tiles& tiles, const Arrays& arrays, Seen seen) {
    const int own = warp_index() * S::OWN_ROWS;
    const auto start_copy = [&](const auto& target, const Rows<ELEMENT>& from, const KeyTile& tile) {
        if (tile.start < tile.stop)
            load_rows_by<BLOCK_KEYS, THREADS>(target, 0, opaque(thread_index()), from, [&](int r) {
                return tile.start + r < tile.stop ? tile.start + r : -1;
            });
        commit_copies();
    };
    for (int i = 0; i < AHEAD - 1; ++i)
        if (thread_index() == 0) tiles.tile(i) = tiles.work().template next<BLOCK_KEYS>();
    sync_block();  // the tiles are known
    start_copy(tiles.values(), arrays.v, tiles.tile(0));
    start_copy(tiles.keys(), arrays.k, tiles.tile(0));
    for (int at = 0; tiles.tile(at).start < tiles.tile(at).stop; ++at) {
        const KeyTile& now = tiles.tile(at);
        const KeyTile& following = tiles.tile(at + 1);
        wait_copies<1>();
        sync_block();  // the values are there
        if (thread_index() == 0) tiles.tile(at + AHEAD - 1) = tiles.work().template next<BLOCK_KEYS>();
        Pairs logits, d_weights;
        clear(d_weights);
        multiply_rows<Product, VALUE_BLOCK>(d_weights, tiles.grads(), own, tiles.values());
        wait_copies<0>();
        sync_block();  // the keys are there, and nobody reads the values
        start_copy(tiles.values(), arrays.v, following);
        u32 bits[WARP_ROW_TILES][2];
        if (now.mask != EVERY) {
            mark_pairs<S>(bits, now, seen);
        } else {
#pragma unroll
            for (int m = 0; m < WARP_ROW_TILES; ++m) bits[m][0] = bits[m][1] = ~0u;
        }
        if (now.mask == PAIRS) {
            make_finite<BLOCK_KEYS, THREADS>(tiles.keys(), 0, opaque(thread_index()));
            sync_block();
        }
        clear(logits);
        multiply_rows<Product, HEAD_BLOCK>(logits, tiles.queries(), own, tiles.keys());
        const int g = opaque(lane_index()) / 4;
#pragma unroll
        for (int m = 0; m < WARP_ROW_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Pair constants = tiles.constants(own + 16 * m + 8 * h + g);
#pragma unroll
                for (int n = 0; n < S::KEY_COLUMNS; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        slope(logits[m][n][2 * h + e], d_weights[m][n][2 * h + e], (bits[m][h] >> (2 * n + e) & 1) != 0,
                              constants.first, constants.second, arrays.scale, arrays.lift);
            }
        multiply_weights<SlopeProduct>(sums, d_weights, tiles.keys());
        sync_block();  // nobody reads the keys
        start_copy(tiles.keys(), arrays.k, following);
    }
    wait_copies<0>();  // of the rows, where there was no key
}

// The partial sums of the rows that are kept, each to its place; 0 of one that sees no key.
template <class Seen>
DEVICE void write_rows(const Tiles& tiles, const Arrays& arrays, Seen seen) {
    const int own = warp_index() * S::OWN_ROWS;
    sync_warp();  // the rows are kept
    const auto row_of = [&](int r) { return tiles.row(r); };
    load_own_rows<S::OWN_ROWS>(tiles.queries(), own, arrays.q, row_of);
    load_own_rows<S::OWN_ROWS>(tiles.grads(), own, arrays.d_out, row_of);
    commit_copies();
    Sums sums;
    clear(sums);
    sum_keys(sums, tiles, arrays, seen);
    const int lane = opaque(lane_index()), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < WARP_ROW_TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = own + 16 * m + 8 * h + g, place = tiles.place(r);
            if (place < 0) continue;
            const bool sees = tiles.row(r) >= 0;
            float* target = arrays.out + i64(place) * arrays.width;
#pragma unroll
            for (int n = 0; n < HEAD_BLOCK / 8; ++n) {
                const int column = 8 * n + 2 * t;
                if (column < arrays.width)
                    *reinterpret_cast<Pair*>(target + column) =
                        sees ? Pair{sums[m][n][2 * h], sums[m][n][2 * h + 1]} : Pair{0.0f, 0.0f};
            }
        }
}

// Anchored pairs. Grid (items, heads, batch).
//
//   q, k, v, d_out   (batch, tokens, heads or heads / group, head_dim or v_head_dim), any strides
//   shift, delta     float32 (batch, heads, rows), see rows.cu
//   items, entries   see planning/query_tiles.py, `QueryTiles`
//   ends             int32 (batch or 1, segments), ends of valid positions; null without padding
//   dq_parts         float32 (batch, heads, places, width), width: head_dim in whole vectors
//   scale            on the logits, log2(e) included
KERNEL(anchor_query_grads)(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, const ELEMENT* d_out,
                           const float* shift, const float* delta, const int* items, const int* entries,
                           const int* ends, float* dq_parts, i64 stride_qb, i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_kb,
                           i64 stride_kl, i64 stride_kh, i64 stride_kd, i64 stride_vb, i64 stride_vl, i64 stride_vh,
                           i64 stride_vd, i64 stride_ob, i64 stride_ol, i64 stride_oh, i64 stride_od, int stride_ends,
                           int aligned_q, int aligned_k, int aligned_v, int aligned_o, int head_dim, int v_head_dim,
                           int width, int group, int rows, int places, int q_start, int reach, int causal, float scale,
                           float lift) {
    SHARED_MEMORY(memory);
    const int head = block_y(), batch = block_z();
    const i64 lane = i64(batch) * grid_y() + head;
    const int* item = items + block_x() * ITEM;
    const int row = item[0], count = item[1], moved = item[4];
    const Arrays arrays{
        {q + batch * stride_qb + head * stride_qh, stride_ql, stride_qd, head_dim, aligned_q != 0},
        {d_out + batch * stride_ob + head * stride_oh, stride_ol, stride_od, v_head_dim, aligned_o != 0},
        {k + batch * stride_kb + head / group * stride_kh, stride_kl, stride_kd, head_dim, aligned_k != 0},
        {v + batch * stride_vb + head / group * stride_vh, stride_vl, stride_vd, v_head_dim, aligned_v != 0},
        shift + lane * rows, delta + lane * rows, dq_parts + lane * places * width, width, scale, lift};
    const Tiles tiles{memory};
    const int own = warp_index() * S::OWN_ROWS;
    if (lane_index() < S::OWN_ROWS) {
        const int r = own + lane_index();
        keep_row(tiles, r, r < count ? row + r : -1, r < count ? moved + row + r : -1, arrays);
    }
    if (thread_index() == 0)
        tiles.work() = EntryTiles{
            entries, ends == nullptr ? nullptr : ends + i64(batch) * stride_ends, item[2], item[3], 0, 0, EVERY, 0};
    const Sight sight{entries, q_start, reach, causal != 0};
    write_rows(tiles, arrays, [&](const KeyTile& tile, int m, int h, int key) {
        return sight.in_range(tile.range, row + own + 16 * m + 8 * h + lane_index() / 4, key);
    });
}

// Routed pairs. Grid (bound on groups of S::ROWS entries, heads, batch): blocks beyond the last group do nothing.
//
// As `anchor_query_grads`, and
//
//   entries        int32 (batch, heads, places), row * slots + slot by chunk;  places = rows * slots
//   ptr, tile_ptr  int32 (batch, heads, chunks + 1), entries and groups of S::ROWS of them before each chunk
//   chunk_lo       int32 (chunks,);  stops: int32 (batch or 1, chunks), the valid keys of each chunk
//   run_of_row, anchor_ptr, anchor_lo, anchor_hi   see Anchors; read where `splits`: anchors hold parts of chunks
KERNEL(routed_query_grads)(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, const ELEMENT* d_out,
                           const float* shift, const float* delta, const int* entries, const int* ptr,
                           const int* tile_ptr, const int* chunk_lo, const int* stops, const int* run_of_row,
                           const int* anchor_ptr, const int* anchor_lo, const int* anchor_hi, float* dq_parts,
                           i64 stride_qb, i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_kb, i64 stride_kl,
                           i64 stride_kh, i64 stride_kd, i64 stride_vb, i64 stride_vl, i64 stride_vh, i64 stride_vd,
                           i64 stride_ob, i64 stride_ol, i64 stride_oh, i64 stride_od, int stride_stops, int aligned_q,
                           int aligned_k, int aligned_v, int aligned_o, int head_dim, int v_head_dim, int width,
                           int group, int rows, int places, int slots, int chunks, int q_start, int reach, int splits,
                           float scale, float lift) {
    SHARED_MEMORY(memory);
    const int head = block_y(), batch = block_z();
    const i64 lane = i64(batch) * grid_y() + head;
    tile_ptr += lane * (chunks + 1);
    ptr += lane * (chunks + 1);
    if (block_x() >= tile_ptr[chunks]) return;
    const int chunk = find_start(tile_ptr, block_x(), chunks);
    const int first = ptr[chunk] + (block_x() - tile_ptr[chunk]) * S::ROWS, end = ptr[chunk + 1];
    const int lo = chunk_lo[chunk], hi = stops[i64(batch) * stride_stops + chunk];
    const Arrays arrays{
        {q + batch * stride_qb + head * stride_qh, stride_ql, stride_qd, head_dim, aligned_q != 0},
        {d_out + batch * stride_ob + head * stride_oh, stride_ol, stride_od, v_head_dim, aligned_o != 0},
        {k + batch * stride_kb + head / group * stride_kh, stride_kl, stride_kd, head_dim, aligned_k != 0},
        {v + batch * stride_vb + head / group * stride_vh, stride_vl, stride_vd, v_head_dim, aligned_v != 0},
        shift + lane * rows, delta + lane * rows, dq_parts + lane * places * width, width, scale, lift};
    const Tiles tiles{memory};
    const Anchors anchors{run_of_row, anchor_ptr, anchor_lo, anchor_hi, q_start, reach};
    const int own = warp_index() * S::OWN_ROWS;
    bool meet = false;
    if (lane_index() < S::OWN_ROWS) {
        const int r = own + lane_index(), entry = first + r < end ? entries[lane * places + first + r] : -1;
        const int row = entry < 0 ? -1 : entry / slots;
        meet = keep_row(tiles, r, row, entry, arrays) && splits != 0 && anchors.meet(row, lo, hi);
    }
    const bool masked = splits != 0 && sync_block_any(meet);
    if (thread_index() == 0) tiles.work() = EntryTiles{nullptr, nullptr, 0, 0, lo, hi, masked ? PAIRS : EVERY, 0};
    const auto seen = [&](const KeyTile&, int m, int h, int key) {
        const int row = tiles.row(own + 16 * m + 8 * h + lane_index() / 4);
        return row >= 0 && !anchors.hold(row, key);
    };
    write_rows(tiles, arrays, seen);
}

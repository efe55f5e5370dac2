// Gradients of keys and values, key-stationary: a tile of keys against every row that sees one of them.
//
//   dV = P^T d_out,  dK = dS^T Q,  P and dS of slopes.cuh, over the rows of all query heads that read the key head.
//
// Rows come from two lists: the rectangles of anchors that the tile meets, consecutive rows; and the entries of the
// tile's chunk, gathered rows. A tile with more than `segment` tiles of rows is split: blocks of their own take
// `segment` each and write float32 sums to a place of their own, and `join_segments` (joins.cu) adds those in order. So
// each sum has one order, whatever runs when.
//
// A warp holds 16 * KEY_TILES keys and multiplies them with BLOCK_ROWS rows at a time, S^T = K Q^T and dP^T = V
// d_out^T: what it makes of them lies in registers as the operands of P^T d_out and dS^T Q lie.
//
// Constants: ELEMENT (half_t, bfloat_t or float); HEAD_BLOCK, VALUE_BLOCK (64, 128 or 256), at least head_dim and
// v_head_dim; BLOCK_KEYS, 16 or 32 to a warp; BLOCK_ROWS (16, 32 or 64); STAGES (1 or 2), tiles of rows in shared
// memory; DIM_PARTS, blocks that share the columns of dK and dV of a tile of keys; PIECES_OF_FLOAT, see fragments.cuh.
#include "row_tiles.cuh"
#include "search.cuh"
#include "slopes.cuh"
#include "stores.cuh"

constexpr int OWN_KEYS = BLOCK_KEYS / (THREADS / 32), KEY_TILES = OWN_KEYS / 16;
constexpr int HEAD_COLUMNS = HEAD_BLOCK / DIM_PARTS, VALUE_COLUMNS = VALUE_BLOCK / DIM_PARTS;
constexpr int ROW_COLUMNS = BLOCK_ROWS / 8;
// More tiles of rows than any work has.
constexpr int ALL = 1 << 30;

using Product = typename GradProducts<ELEMENT, PIECES_OF_FLOAT>::Pair;
using SlopeProduct = typename GradProducts<ELEMENT, PIECES_OF_FLOAT>::Slope;
using KeysTile = Tile<ELEMENT, BLOCK_KEYS, HEAD_BLOCK>;
using ValuesTile = Tile<ELEMENT, BLOCK_KEYS, VALUE_BLOCK>;
using QueriesTile = Tile<ELEMENT, BLOCK_ROWS, HEAD_BLOCK>;
using GradsTile = Tile<ELEMENT, BLOCK_ROWS, VALUE_BLOCK>;
using List = RowList<BLOCK_ROWS>;
// The rows in use, those on their way, those that are looked up, and the tile after them.
constexpr int LISTS = STAGES + 2;
constexpr int STAGES_AT = KeysTile::BYTES + ValuesTile::BYTES;
constexpr int LISTS_AT = STAGES_AT + STAGES * (QueriesTile::BYTES + GradsTile::BYTES);

static_assert(BLOCK_KEYS == KEY_TILES * 16 * (THREADS / 32), "warps hold whole tiles");
static_assert(BLOCK_ROWS % 16 == 0 && BLOCK_ROWS <= 64 && BLOCK_ROWS <= THREADS, "a thread looks up a row");

// What a block is at: arrays at its batch row and the first query head of its group, and its tile of keys. It lies in
// shared memory, where the registers are not that the sums take.
struct alignas(16) Place {
    const ELEMENT* q;
    const ELEMENT* d_out;
    const float* shift;
    const float* delta;
    const int* entries;
    RowTiles<BLOCK_ROWS> work;
    int lo, hi, end;  // valid keys of the tile, and where all of them end
    int part;         // of the split tiles, -1 for a whole tile
};
static_assert(LISTS_AT + LISTS * int(sizeof(List)) + int(sizeof(Place)) == SHARED_BYTES,
              "the host allots what the tiles take");

// The rows of a block.
struct Queries {
    const Place& place;
    i64 stride_ql, stride_qh, stride_qd, stride_ol, stride_oh, stride_od;
    int head_dim, v_head_dim;
    bool aligned_q, aligned_o;
    int rows, places, slots;

    DEVICE Rows<ELEMENT> query_rows(int member) const {
        return Rows<ELEMENT>{place.q + member * stride_qh, stride_ql, stride_qd, head_dim, aligned_q};
    }
    DEVICE Rows<ELEMENT> grad_rows(int member) const {
        return Rows<ELEMENT>{place.d_out + member * stride_oh, stride_ol, stride_od, v_head_dim, aligned_o};
    }
    // This thread's row of a tile.
    DEVICE Row row_of(const RowTile& tile) const {
        const int at = tile.start + thread_index();
        const Row none{-1, infinity(), 0.0f};
        if (thread_index() >= BLOCK_ROWS || at >= tile.stop) return none;
        const int number = tile.kind == ROUTED ? place.entries[i64(tile.member) * places + at] / slots : at;
        const float own = place.shift[i64(tile.member) * rows + number];
        if (own == -infinity()) return none;  // a row without keys, or padding, which may hold anything
        return Row{number, own, place.delta[i64(tile.member) * rows + number]};
    }
};

// What decides which pairs of a tile of keys and a tile of rows count.
struct Sight {
    const int* key_lo;
    const int* key_hi;
    const int* banded;
    Anchors anchors;
    bool causal, splits;

    // Whether a row asks for a mask.
    DEVICE bool masks(const RowTile& tile, const Row& row, const Place& place) const {
        if (tile.kind != ROUTED) return tile.kind == SOME;
        return splits && row.number >= 0 && anchors.meet(row.number, place.lo, place.hi);
    }
    DEVICE bool seen(const List& list, int row, int key) const {
        if (list.tile.kind == ROUTED) return !anchors.hold(row, key);
        const int distance = key - row - anchors.q_start, meeting = list.tile.meeting;
        return key >= key_lo[meeting] && key < key_hi[meeting] && !(causal && distance > 0) &&
               !(banded[meeting] && (distance > anchors.reach || -distance > anchors.reach));
    }
};

// Weights of pairs, and their slopes, as accumulators of (keys, rows).
using Pairs = float[KEY_TILES][ROW_COLUMNS][4];
using KeySums = float[KEY_TILES][HEAD_COLUMNS / 8][4];
using ValueSums = float[KEY_TILES][VALUE_COLUMNS / 8][4];

// Turn logits into P and dP into dS, rows along the columns.
DEVICE void weigh(Pairs& logits, Pairs& d_weights, const List& list, const Sight& sight, int lo, float scale,
                  float lift) {
    const int lane = opaque(lane_index()), g = lane / 4, t = lane % 4;
    const bool masked = (list.all_flags() & MASKED) != 0;
#pragma unroll
    for (int m = 0; m < KEY_TILES; ++m) {
        u32 seen[2] = {~0u, ~0u};  // bit 2 n + e of [h]: key 16 m + 8 h + g and row 8 n + 2 t + e
        if (masked) {
            const int key = lo + warp_index() * OWN_KEYS + 16 * m + g;
            seen[0] = seen[1] = 0;
            for (int place = 0; place < 2 * ROW_COLUMNS; ++place) {
                const int row = list.row[place / 2 * 8 + 2 * t + place % 2];
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    if (row >= 0 && sight.seen(list, row, key + 8 * h)) seen[h] |= 1u << place;
            }
        }
#pragma unroll
        for (int n = 0; n < ROW_COLUMNS; ++n) {
            const Vector constants = *reinterpret_cast<const Vector*>(list.constants + 2 * (8 * n + 2 * t));
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float shift = float_of(constants.word[2 * e]), delta = float_of(constants.word[2 * e + 1]);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const bool counts = (seen[h] >> (2 * n + e) & 1) != 0;
                    slope(logits[m][n][2 * h + e], d_weights[m][n][2 * h + e], counts, shift, delta, scale, lift);
                }
            }
        }
    }
}

// Add P^T d_out of the rows whose d_out is not finite, which are in `grads` now, one by one: each counts only for
// weights that are not 0. These are computed anew, so that nothing is kept for it where all is finite.
DEVICE void add_spoiled(ValueSums& sums, const KeysTile& keys, const QueriesTile& queries, const GradsTile& grads,
                        const List& list, const Sight& sight, int lo, int column, float scale, float lift) {
    using Number = Element<ELEMENT>;
    const int lane = opaque(lane_index()), g = lane / 4, t = lane % 4, own = warp_index() * OWN_KEYS;
    const bool masked = (list.all_flags() & MASKED) != 0;
#pragma unroll 1
    for (int r = 0; r < BLOCK_ROWS; ++r) {
        if (!list.spoiled(r)) continue;
#pragma unroll
        for (int m = 0; m < KEY_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int key = own + 16 * m + 8 * h + g;
                float weight = 0.0f, unused = 0.0f;
#pragma unroll 1
                for (int i = t; i < HEAD_BLOCK; i += 4)
                    weight += Number::value(*keys.at(key, i)) * Number::value(*queries.at(r, i));
                weight += shuffle_xor(weight, 1);
                weight += shuffle_xor(weight, 2);
                const bool counts = !masked || sight.seen(list, list.row[r], lo + key);
                slope(weight, unused, counts, list.shift(r), 0.0f, scale, lift);
                const ELEMENT* d_out = grads.at(r, column + 2 * t);
#pragma unroll
                for (int n = 0; n < VALUE_COLUMNS / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (weight != 0.0f) sums[m][n][2 * h + e] += weight * Number::value(d_out[8 * n + e]);
            }
    }
}

// Which part of the columns of dK and dV a block sums.
DEVICE int dim_part() { return DIM_PARTS == 1 ? 0 : opaque(block_x()) % DIM_PARTS; }

// Tiles in shared memory.
struct Tiles {
    unsigned char* memory;

    DEVICE KeysTile keys() const { return KeysTile{reinterpret_cast<ELEMENT*>(memory)}; }
    DEVICE ValuesTile values() const { return ValuesTile{reinterpret_cast<ELEMENT*>(memory + KeysTile::BYTES)}; }
    DEVICE QueriesTile queries(int stage) const {
        return QueriesTile{reinterpret_cast<ELEMENT*>(memory + STAGES_AT + stage * QueriesTile::BYTES)};
    }
    DEVICE GradsTile grads(int stage) const {
        return GradsTile{
            reinterpret_cast<ELEMENT*>(memory + STAGES_AT + STAGES * QueriesTile::BYTES + stage * GradsTile::BYTES)};
    }
    DEVICE List& list(int number) const { return reinterpret_cast<List*>(memory + LISTS_AT)[number]; }
    DEVICE Place& place() const { return *reinterpret_cast<Place*>(memory + LISTS_AT + LISTS * int(sizeof(List))); }
};

// Add what every tile of rows gives the keys, which are there.
//
// With one stage d_out of the next tile arrives while dK is summed, and q while dP is computed, which is why it comes
// first. With two stages both arrive during all of it. Rows are looked up a tile before their arrays are asked for.
DEVICE void sum_rows(KeySums& d_keys, ValueSums& d_values, const Tiles& tiles, const Queries& queries,
                     const RowRanges& ranges, const Sight& sight, float scale, float lift) {
    const int own = warp_index() * OWN_KEYS;
    Place& place = tiles.place();
    const auto start_grads = [&](int stage, const List& list) {
        load_rows_by<BLOCK_ROWS, THREADS>(tiles.grads(stage), 0, opaque(thread_index()),
                                          queries.grad_rows(list.tile.member),
                                          [&](int r) { return list.grad_row(r); });
    };
    const auto start_queries = [&](int stage, const List& list) {
        load_rows_by<BLOCK_ROWS, THREADS>(tiles.queries(stage), 0, opaque(thread_index()),
                                          queries.query_rows(list.tile.member),
                                          [&](int r) { return list.query_row(r); });
    };
    for (int i = 0; i <= STAGES; ++i)
        if (thread_index() == 0) tiles.list(i).tile = place.work.next(ranges);
    sync_block();  // the tiles are known
    for (int i = 0; i < STAGES; ++i) {
        const Row row = queries.row_of(tiles.list(i).tile);
        tiles.list(i).write(row, sight.masks(tiles.list(i).tile, row, place));
    }
    sync_block();  // the lists are there
    start_grads(0, tiles.list(0));
    commit_copies();
    start_queries(0, tiles.list(0));
    commit_copies();
    int at = 0, stage = 0;  // the current list and stage
    while (tiles.list(at).any()) {
        const List& list = tiles.list(at);
        const List& following = tiles.list((at + 1) % LISTS);
        List& found = tiles.list((at + STAGES) % LISTS);
        wait_copies<STAGES == 1 ? 1 : 0>();
        sync_block();  // d_out is there, and with two stages all of the tile, and nobody reads the one before
        if (STAGES == 2) {
            if (following.any()) {
                start_grads(stage ^ 1, following);
                start_queries(stage ^ 1, following);
            }
            commit_copies();
        }
        if (thread_index() == 0) tiles.list((at + STAGES + 1) % LISTS).tile = place.work.next(ranges);
        const Row row = queries.row_of(found.tile);
        Pairs logits, d_weights;
        clear(d_weights);
        multiply_rows<Product, VALUE_BLOCK>(d_weights, tiles.values(), own, tiles.grads(stage));
        if (STAGES == 1) {
            wait_copies<0>();
            sync_block();  // q is there
        }
        clear(logits);
        multiply_rows<Product, HEAD_BLOCK>(logits, tiles.keys(), own, tiles.queries(stage));
        found.write(row, sight.masks(found.tile, row, place));
        weigh(logits, d_weights, list, sight, place.lo, scale, lift);
        multiply_weights<Product>(d_values, logits, tiles.grads(stage), dim_part() * VALUE_COLUMNS);
        if (list.all_flags() & SPOILED) {
            sync_block();  // nobody reads d_out, in which those rows are 0
            load_rows_by<BLOCK_ROWS, THREADS>(tiles.grads(stage), 0, opaque(thread_index()),
                                              queries.grad_rows(list.tile.member),
                                              [&](int r) { return list.spoiled(r) ? list.row[r] : -1; });
            commit_copies();
            wait_copies<0>();
            sync_block();
            add_spoiled(d_values, tiles.keys(), tiles.queries(stage), tiles.grads(stage), list, sight, place.lo,
                        dim_part() * VALUE_COLUMNS, scale, lift);
        }
        if (STAGES == 1) {
            sync_block();  // nobody reads d_out
            if (following.any()) start_grads(0, following);
            commit_copies();
        }
        multiply_weights<SlopeProduct>(d_keys, d_weights, tiles.queries(stage), dim_part() * HEAD_COLUMNS);
        if (STAGES == 1) {
            sync_block();  // nobody reads q
            if (following.any()) start_queries(0, following);
            commit_copies();
        }
        stage ^= STAGES - 1;
        at = (at + 1) % LISTS;
    }
}

// Grid ((parts + key_tiles) * DIM_PARTS, kv_heads, batch): blocks for each part of the split tiles, then for each tile.
//
//   q, k, v, d_out  (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides
//   shift, delta    float32 (batch, heads, rows), see rows.cu
//   entries         int32 (batch, heads, places), row * slots + slot by chunk;  ptr: int32 (batch, heads, chunks + 1)
//   stops           int32 (batch or 1, chunks), end of the valid keys of each chunk
//   tile_lo ... banded   see planning/key_tiles.py, `KeyTiles`
//   split_ptr       int32 (batch, kv_heads, key_tiles + 1), parts before each tile
//   run_of_row, anchor_ptr, anchor_lo, anchor_hi   see Anchors; read where `splits`: anchors hold parts of chunks
//   dk, dv          like k and v, any strides; every element is written, but for those of split tiles
//   dk_parts, dv_parts   float32 (batch, kv_heads, parts, BLOCK_KEYS, HEAD_BLOCK or VALUE_BLOCK), sums of segments
//   scale           on the logits, log2(e) included;  dk_factor, dv_factor: on the sums, when they are written
KERNEL(key_grads)(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, const ELEMENT* d_out, const float* shift,
                  const float* delta, const int* entries, const int* ptr, const int* stops, const int* tile_lo,
                  const int* tile_hi, const int* tile_chunk, const int* meeting_ptr, const int* row_lo,
                  const int* row_full, const int* row_hi, const int* key_lo, const int* key_hi, const int* banded,
                  const int* split_ptr, const int* run_of_row, const int* anchor_ptr, const int* anchor_lo,
                  const int* anchor_hi, ELEMENT* dk, ELEMENT* dv, float* dk_parts, float* dv_parts, i64 stride_qb,
                  i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_kb, i64 stride_kl, i64 stride_kh,
                  i64 stride_kd, i64 stride_vb, i64 stride_vl, i64 stride_vh, i64 stride_vd, i64 stride_ob,
                  i64 stride_ol, i64 stride_oh, i64 stride_od, i64 stride_dkb, i64 stride_dkl, i64 stride_dkh,
                  i64 stride_dkd, i64 stride_dvb, i64 stride_dvl, i64 stride_dvh, i64 stride_dvd, int stride_stops,
                  int aligned_q, int aligned_k, int aligned_v, int aligned_o, int aligned_dk, int aligned_dv,
                  int head_dim, int v_head_dim, int group, int rows, int places, int slots, int chunks, int key_tiles,
                  int parts, int segment, int q_start, int reach, int causal, int splits, float scale, float lift,
                  float dk_factor, float dv_factor) {
    SHARED_MEMORY(memory);
    const int number = block_x() / DIM_PARTS, kv_head = block_y(), batch = block_z();
    const i64 kv_lane = i64(batch) * grid_y() + kv_head, lane = kv_lane * group;
    const bool is_part = number < parts;
    split_ptr += kv_lane * (key_tiles + 1);
    const int tile = is_part ? find_start(split_ptr, number, key_tiles) : number - parts;
    const int before = split_ptr[tile], own_parts = split_ptr[tile + 1] - before;
    // There are places for more parts than may be needed, and a tile that has parts is left to them.
    if (is_part ? number - before >= own_parts : own_parts > 0) return;

    const int chunk = tile_chunk[tile], lo = tile_lo[tile], end = tile_hi[tile];
    const int hi = smaller(end, stops[i64(batch) * stride_stops + chunk]);
    const Tiles tiles{memory};
    // Without a valid key there is no work, but there are zeros to be written.
    if (thread_index() == 0)
        tiles.place() = Place{q + batch * stride_qb + kv_head * group * stride_qh,
                              d_out + batch * stride_ob + kv_head * group * stride_oh,
                              shift + lane * rows,
                              delta + lane * rows,
                              entries + lane * places,
                              {ptr + lane * (chunks + 1) + chunk, meeting_ptr[tile],
                               meeting_ptr[tile + 1] - meeting_ptr[tile], is_part ? (number - before) * segment : 0,
                               lo >= hi ? 0 : is_part ? segment : ALL, 0, -1, 0, 0},
                              lo,
                              hi,
                              end,
                              is_part ? number : -1};
    const RowRanges ranges{row_lo, row_full, row_hi, chunks + 1, group};
    const Queries queries{tiles.place(), stride_ql, stride_qh, stride_qd, stride_ol, stride_oh, stride_od, head_dim,
                          v_head_dim, aligned_q != 0, aligned_o != 0, rows, places, slots};
    const Sight sight{key_lo, key_hi, banded, Anchors{run_of_row, anchor_ptr, anchor_lo, anchor_hi, q_start, reach},
                      causal != 0, splits != 0};
    const int own = warp_index() * OWN_KEYS;
    const Rows<ELEMENT> key_rows{k + batch * stride_kb + kv_head * stride_kh, stride_kl, stride_kd, head_dim,
                                 aligned_k != 0};
    const Rows<ELEMENT> value_rows{v + batch * stride_vb + kv_head * stride_vh, stride_vl, stride_vd, v_head_dim,
                                   aligned_v != 0};
    const auto key_row = [&](int r) { return lo + r < hi ? lo + r : -1; };
    load_own_rows<OWN_KEYS>(tiles.keys(), own, key_rows, key_row);
    load_own_rows<OWN_KEYS>(tiles.values(), own, value_rows, key_row);
    commit_copies();
    KeySums d_keys;
    ValueSums d_values;
    clear(d_keys);
    clear(d_values);
    wait_copies<0>();
    sync_block();  // the place is there, and each warp's own keys
    make_finite<OWN_KEYS, 32>(tiles.keys(), own, lane_index());
    sync_warp();
    sum_rows(d_keys, d_values, tiles, queries, ranges, sight, scale, lift);

    sync_warp();  // no lane reads keys any more: the results leave from there
    const Place& place = tiles.place();
    const int column_k = dim_part() * HEAD_COLUMNS, column_v = dim_part() * VALUE_COLUMNS;
    const auto counts = [&](int r) { return place.lo + r < place.hi; };
    if (place.part >= 0) {
        const auto own_counts = [&](int r) { return counts(own + r); };
        const i64 row = ((i64(block_z()) * grid_y() + block_y()) * parts + place.part) * BLOCK_KEYS + own;
        write_sums(dk_parts + row * HEAD_BLOCK + column_k, HEAD_BLOCK, d_keys, own_counts);
        write_sums(dv_parts + row * VALUE_BLOCK + column_v, VALUE_BLOCK, d_values, own_counts);
        return;
    }
    const auto target = [&](int r) { return place.lo + r < place.end ? place.lo + r : -1; };
    stage_sums(tiles.keys(), own, column_k, d_keys, dk_factor, counts);
    stage_sums(tiles.values(), own, column_v, d_values, dv_factor, counts);
    sync_warp();
    const Target<ELEMENT> d_k{dk + block_z() * stride_dkb + block_y() * stride_dkh, stride_dkl, stride_dkd, head_dim,
                              aligned_dk != 0};
    const Target<ELEMENT> d_v{dv + block_z() * stride_dvb + block_y() * stride_dvh, stride_dvl, stride_dvd, v_head_dim,
                              aligned_dv != 0};
    store_own_rows<OWN_KEYS, HEAD_COLUMNS>(d_k, tiles.keys(), own, column_k, target);
    store_own_rows<OWN_KEYS, VALUE_COLUMNS>(d_v, tiles.values(), own, column_v, target);
}

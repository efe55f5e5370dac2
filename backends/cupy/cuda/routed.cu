// Routed pairs, chunk-major: gathered query rows against the keys of the chunk that they chose.
//
//   out[h, row, slot] = softmax(scale q_row K_c^T) V_c,  lse[h, row, slot] = log2 sum exp2(scale q_row K_c^T),
//
// c the chunk in that slot, less the keys that the row's anchors hold. A block takes the entries of one chunk: SPAN groups
// of ROWS. Each entry has a place of its own: nothing is added to, no order matters.
//
// Where every chunk fits into one tile of keys, KEYS_STAY, it stays in shared memory while the warps, each for itself, pass
// their rows by it. Of longer chunks the queries stay, and the keys pass.
//
// Constants: ELEMENT, HEAD_BLOCK, VALUE_BLOCK, BLOCK_KEYS, WARP_ROW_TILES, PIECES_OF_FLOAT, see softmax.cuh; KEYS_STAY, 0 or 1.
#include "coverage.cuh"
#include "partials.cuh"
#include "search.cuh"

using S =
    Shape<ELEMENT, THREADS / 32, WARP_ROW_TILES, BLOCK_KEYS, HEAD_BLOCK, VALUE_BLOCK, PIECES_OF_FLOAT>;
static_assert(S::QueryTile::BYTES + S::KeysTile::BYTES + S::ValuesTile::BYTES + 8 * S::ROWS + NOTES == SHARED_BYTES,
              "the host allots what the tiles take");

// The entries of a chunk that a block attends, and where their results go.
struct Entries {
    const int* list;  // row * slots + slot
    int first, end;   // in the list
    int slots;
    int* own;   // shared, one for each row of the block: its entry, -1 for none
    int* rows;  // and the row that this is of

    DEVICE int entry(int number) const { return number < end ? list[number] : -1; }
    DEVICE void keep(int r, int entry) const {
        own[r] = entry;
        rows[r] = entry < 0 ? -1 : entry / slots;
    }
};

// Rows pass by the keys of one tile.
DEVICE void pass_rows(const Entries& entries, const typename S::QueryTile& queries, const typename S::KeysTile& keys,
                      const typename S::ValuesTile& values, const Rows<ELEMENT>& q, const Rows<ELEMENT>& k,
                      const Rows<ELEMENT>& v, ELEMENT* out, float* lse, int width, int lo, int hi, float scale) {
    const int own = warp_index() * S::OWN_ROWS, lane = lane_index();
    const KeyTile tile{lo, hi, hi - lo == S::KEYS ? EVERY : KEYS_END, 0};
    const auto key_row = [&](int r) { return lo + r < hi ? lo + r : -1; };
    load_rows(keys, k, key_row);
    load_rows(values, v, key_row);
    commit_copies();
    int entry = lane < S::OWN_ROWS ? entries.entry(entries.first + own + lane) : -1;
    bool shared_there = false;
    for (int first = entries.first; first < entries.end; first += S::ROWS) {
        if (lane < S::OWN_ROWS) entries.keep(own + lane, entry);
        sync_warp();
        load_own_rows<S::OWN_ROWS>(queries, own, q, [&](int r) { return entries.rows[r]; });
        commit_copies();
        entry = lane < S::OWN_ROWS ? entries.entry(first + S::ROWS + own + lane) : -1;
        wait_copies<0>();
        if (shared_there) {
            sync_warp();
        } else {
            sync_block();
            shared_there = true;
        }
        Softmax<S> state;
        state.start();
        float logits[S::ROW_TILES][S::KEY_COLUMNS][4];
        clear(logits);
        multiply_rows<S::Product, S::HEAD>(logits, queries, own, keys);
        take_in<S>(state, logits, values, tile, [](const KeyTile&, int, int, int) { return true; }, scale);
        write_partials<S>(state, queries, out, lse, width, [&](int r) { return i64(entries.own[own + r]); });
        sync_warp();  // what follows overwrites the rows and their entries
    }
}

// Keys pass by rows, ROWS of them at a time.
DEVICE void pass_keys(const Entries& entries, const typename S::QueryTile& queries, const typename S::KeysTile& keys,
                      const typename S::ValuesTile& values, const Rows<ELEMENT>& q, const Rows<ELEMENT>& k,
                      const Rows<ELEMENT>& v, ELEMENT* out, float* lse, int width, int lo, int hi, float scale,
                      const Anchors& anchors, bool splits, KeyTile* upcoming) {
    const int own = warp_index() * S::OWN_ROWS, lane = lane_index();
    for (int first = entries.first; first < entries.end; first += S::ROWS) {
        sync_block();  // nobody reads the tiles of the rows before
        if (lane < S::OWN_ROWS) entries.keep(own + lane, entries.entry(first + own + lane));
        sync_warp();
        load_own_rows<S::OWN_ROWS>(queries, own, q, [&](int r) { return entries.rows[r]; });
        commit_copies();
        bool meet = false;
        if (splits && lane < S::OWN_ROWS && entries.rows[own + lane] >= 0)
            meet = anchors.meet(entries.rows[own + lane], lo, hi);
        const bool masked = splits && sync_block_any(meet);
        int start = lo;
        const auto next = [&](KeyTile& tile) {
            if (start >= hi) return;
            const int stop = smaller(start + S::KEYS, hi);
            tile = KeyTile{start, stop, masked ? PAIRS : stop - start == S::KEYS ? EVERY : KEYS_END, 0};
            start = stop;
        };
        const auto seen = [&](const KeyTile&, int m, int h, int key) {
            const int row = entries.rows[own + 16 * m + 8 * h + lane / 4];
            return row >= 0 && !anchors.hold(row, key);
        };
        Softmax<S> state;
        state.start();
        attend<S>(state, queries, keys, values, k, v, scale, upcoming, next, seen);
        write_partials<S>(state, queries, out, lse, width, [&](int r) { return i64(entries.own[own + r]); });
    }
}

// Grid (bound on groups of SPAN * ROWS entries, heads, batch): blocks beyond the last group do nothing.
//
//   q, k, v        (batch, tokens, heads or heads / group, head_dim or v_head_dim), any strides
//   entries        int32 (batch, heads, places), row * slots + slot by chunk, ascending in each; places = rows * slots
//   ptr, tile_ptr  int32 (batch, heads, chunks + 1), entries and groups of SPAN * ROWS of them before each chunk
//   chunk_lo       int32 (chunks,);  stops: int32 (batch or 1, chunks), the valid keys of each chunk
//   run_of_row, anchor_ptr, anchor_lo, anchor_hi   see Anchors; read where `splits`: anchors hold parts of chosen chunks
//   out            (batch, heads, places, width), normalised;  lse: float32 (batch, heads, places), base 2
//   scale          on the logits, log2(e) included, not negative
KERNEL(attend_routed)(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, const int* entries, const int* ptr,
                      const int* tile_ptr, const int* chunk_lo, const int* stops, const int* run_of_row,
                      const int* anchor_ptr, const int* anchor_lo, const int* anchor_hi, ELEMENT* out, float* lse,
                      i64 stride_qb, i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_kb, i64 stride_kl,
                      i64 stride_kh, i64 stride_kd, i64 stride_vb, i64 stride_vl, i64 stride_vh, i64 stride_vd,
                      int stride_stops, int aligned_q, int aligned_k, int aligned_v, int head_dim, int v_head_dim,
                      int width, int group, int chunks, int places, int slots, int span, int q_start, int reach,
                      int splits, float scale) {
    SHARED_MEMORY(memory);
    const int head = block_y(), batch = block_z();
    const i64 lane = i64(batch) * grid_y() + head;
    tile_ptr += lane * (chunks + 1);
    ptr += lane * (chunks + 1);
    if (block_x() >= tile_ptr[chunks]) return;
    const int chunk = find_start(tile_ptr, block_x(), chunks);
    const int first = ptr[chunk] + (block_x() - tile_ptr[chunk]) * span * S::ROWS;
    const int lo = chunk_lo[chunk], hi = stops[i64(batch) * stride_stops + chunk];

    const typename S::QueryTile queries{reinterpret_cast<ELEMENT*>(memory)};
    const typename S::KeysTile keys{reinterpret_cast<ELEMENT*>(memory + S::QueryTile::BYTES)};
    const typename S::ValuesTile values{reinterpret_cast<ELEMENT*>(memory + S::QueryTile::BYTES + S::KeysTile::BYTES)};
    KeyTile* upcoming =
        reinterpret_cast<KeyTile*>(memory + S::QueryTile::BYTES + S::KeysTile::BYTES + S::ValuesTile::BYTES);
    int* own = reinterpret_cast<int*>(reinterpret_cast<unsigned char*>(upcoming) + NOTES);
    const Entries work{entries + lane * places, first, smaller(ptr[chunk + 1], first + span * S::ROWS), slots, own, own + S::ROWS};
    const Rows<ELEMENT> query_rows{q + batch * stride_qb + head * stride_qh, stride_ql, stride_qd, head_dim, aligned_q != 0};
    const Rows<ELEMENT> key_rows{k + batch * stride_kb + head / group * stride_kh, stride_kl, stride_kd, head_dim,
                                 aligned_k != 0};
    const Rows<ELEMENT> value_rows{v + batch * stride_vb + head / group * stride_vh, stride_vl, stride_vd, v_head_dim,
                                   aligned_v != 0};
    out += lane * places * width;
    lse += lane * places;
    if constexpr (KEYS_STAY != 0) {
        pass_rows(work, queries, keys, values, query_rows, key_rows, value_rows, out, lse, width, lo, hi, scale);
    } else {
        const Anchors anchors{run_of_row, anchor_ptr, anchor_lo, anchor_hi, q_start, reach};
        pass_keys(work, queries, keys, values, query_rows, key_rows, value_rows, out, lse, width, lo, hi, scale, anchors,
                  splits != 0, upcoming);
    }
}

// Anchored pairs, query-major: tiles of consecutive rows against contiguous ranges of keys.
//
//   out[h, place] = softmax(scale q_row K^T) V over the item's keys that the row sees,  lse[h, place] = log2 of the sum.
//
// An item (planning/query_tiles.py) is a tile of rows and its ranges of keys. Where `slots` > 0 the rows of a tile share one
// selection, and the item that says so goes on over the chunks chosen: they need no index and no partial results.
//
// Constants: ELEMENT, HEAD_BLOCK, VALUE_BLOCK, BLOCK_KEYS, WARP_ROW_TILES, PIECES_OF_FLOAT; see softmax.cuh.
#include "coverage.cuh"
#include "entries.cuh"
#include "faults.cuh"
#include "partials.cuh"

using S =
    Shape<ELEMENT, THREADS / 32, WARP_ROW_TILES, BLOCK_KEYS, HEAD_BLOCK, VALUE_BLOCK, PIECES_OF_FLOAT>;
static_assert(S::QueryTile::BYTES + S::KeysTile::BYTES + S::ValuesTile::BYTES + NOTES == SHARED_BYTES,
              "the host allots what the tiles take");

// The tiles of keys of an item: of its entries, then of the chunks that its rows chose. Kept in shared memory, by the first
// warp, so that no register holds it while tiles are multiplied.
struct Cursor {
    KeyTile upcoming;
    int slot, slot_end;
    EntryTiles work;
};
static_assert(sizeof(Cursor) <= NOTES, "it lies in the notes");

// Grid (items, heads, batch).
//
//   q, k, v          (batch, tokens, heads or heads / group, head_dim or v_head_dim), any strides
//   items, entries   see planning/query_tiles.py, `QueryTiles`
//   stops, ends      int32 (batch or 1, chunks) and (batch or 1, segments), ends of valid positions; `ends` null without
//                    padding
//   selected         int32 (batch, heads, rows, slots), contiguous; read where slots > 0
//   chunk_lo, run_of_row, run_chunk, run_base, run_stop, anchor_ptr, anchor_lo, anchor_hi   see planning/geometry.py
//   out              (batch, heads, places, width), normalised;  lse: float32 (batch, heads, places), base 2, -infinity
//                    where a row sees no key of the item, or is padding
//   scale            on the logits, log2(e) included, not negative
KERNEL(attend_anchors)(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, const int* items, const int* entries,
                       const int* stops, const int* ends, const int* selected, const int* chunk_lo, const int* run_of_row,
                       const int* run_chunk, const int* run_base, const int* run_stop, const int* anchor_ptr,
                       const int* anchor_lo, const int* anchor_hi, ELEMENT* out, float* lse, u32* fault, i64 stride_qb,
                       i64 stride_ql, i64 stride_qh, i64 stride_qd, i64 stride_kb, i64 stride_kl, i64 stride_kh,
                       i64 stride_kd, i64 stride_vb, i64 stride_vl, i64 stride_vh, i64 stride_vd, int stride_stops,
                       int stride_ends, int aligned_q, int aligned_k, int aligned_v, int head_dim, int v_head_dim,
                       int width, int group, int rows, int places, int slots, int q_start, int reach, int causal,
                       int splits, float scale) {
    SHARED_MEMORY(memory);
    const int head = block_y(), batch = block_z();
    const i64 lane = i64(batch) * grid_y() + head;
    const int* item = items + block_x() * ITEM;
    const int row = item[0], count = item[1], shift = item[4];
    stops += i64(batch) * stride_stops;
    const typename S::QueryTile queries{reinterpret_cast<ELEMENT*>(memory)};
    const typename S::KeysTile keys{reinterpret_cast<ELEMENT*>(memory + S::QueryTile::BYTES)};
    const typename S::ValuesTile values{reinterpret_cast<ELEMENT*>(memory + S::QueryTile::BYTES + S::KeysTile::BYTES)};
    const Rows<ELEMENT> query_rows{q + batch * stride_qb + head * stride_qh, stride_ql, stride_qd, head_dim, aligned_q != 0};
    const Rows<ELEMENT> key_rows{k + batch * stride_kb + head / group * stride_kh, stride_kl, stride_kd, head_dim,
                                 aligned_k != 0};
    const Rows<ELEMENT> value_rows{v + batch * stride_vb + head / group * stride_vh, stride_vl, stride_vd, v_head_dim,
                                   aligned_v != 0};
    // Whether row r of the tile is a query: without padding all are, with it those before the end of their chunk.
    const auto is_query = [&](int r) {
        return r < count && (ends == nullptr || row + r + q_start < stops[run_chunk[run_of_row[row + r]]]);
    };
    const int own = warp_index() * S::OWN_ROWS;
    load_own_rows<S::OWN_ROWS>(queries, own, query_rows, [&](int r) { return is_query(r) ? row + r : -1; });
    commit_copies();

    const Sight sight{entries, q_start, reach, causal != 0};
    const Anchors anchors{run_of_row, anchor_ptr, anchor_lo, anchor_hi, q_start, reach};
    Cursor& cursor = *reinterpret_cast<Cursor*>(memory + S::QueryTile::BYTES + S::KeysTile::BYTES + S::ValuesTile::BYTES);
    if (thread_index() == 0)
        cursor = Cursor{{}, 0, item[5] * slots,
                        EntryTiles{entries, ends == nullptr ? nullptr : ends + i64(batch) * stride_ends, item[2], item[3],
                                   0, 0, EVERY, 0}};
    const auto open_chunk = [&](int slot) {
        const int choice = selected[(lane * rows + row) * slots + slot], run = run_of_row[row];
        const int chunk = run_base[run] + choice;
        const bool known = choice >= -1 && chunk < run_stop[run];
        if (!known && thread_index() == 0) report(fault, FAULT_CHUNK, choice, row);
        if (!known || choice < 0) return;
        bool split = false;
        for (int r = opaque(lane_index()); splits != 0 && r < count; r += 32)
            split |= anchors.meet(row + r, chunk_lo[chunk], stops[chunk]);
        const int mask = warp_any(split) ? PAIRS : EVERY;
        if (lane_index() == 0) cursor.work.take(chunk_lo[chunk], stops[chunk], mask);
    };
    const auto next = [&](KeyTile& tile) {
        while (true) {
            sync_warp();
            if (opaque(lane_index()) == 0) cursor.upcoming = cursor.work.template next<S::KEYS>();
            sync_warp();
            tile = cursor.upcoming;
            const int slot = cursor.slot;
            if (tile.start < tile.stop || slot >= cursor.slot_end) return;
            sync_warp();
            if (lane_index() == 0) cursor.slot = slot + 1;
            open_chunk(slot);
        }
    };
    const auto seen = [&](const KeyTile& tile, int m, int h, int key) {
        const int r = own + 16 * m + 8 * h + opaque(lane_index()) / 4;
        if (r >= count) return false;
        return tile.range < 0 ? !anchors.hold(row + r, key) : sight.in_range(tile.range, row + r, key);
    };
    Softmax<S> state;
    state.start();
    attend<S>(state, queries, keys, values, key_rows, value_rows, scale, &cursor.upcoming, next, seen);
    lse += lane * places;
    write_partials<S>(state, queries, out + lane * places * width, lse, width,
                      [&](int r) { return own + r < count ? i64(shift) + row + own + r : i64(-1); });
    sync_warp();
    for (int r = lane_index(); r < S::OWN_ROWS; r += 32)
        if (own + r < count && !is_query(own + r)) lse[i64(shift) + row + own + r] = -infinity();
}

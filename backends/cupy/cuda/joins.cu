// Partial sums of the gradients, added in order: of the parts of split tiles of keys, and of the queries.
//
// Constants: THREADS; ELEMENT (half_t, bfloat_t or float).
#include "numbers.cuh"
#include "search.cuh"

// Four neighbouring float32 numbers.
struct alignas(16) Four {
    float x[4];
};

DEVICE void add(Four& sum, const float* part) {
    const Four four = *reinterpret_cast<const Four*>(part);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i] += four.x[i];
}

DEVICE void store(const Four& sum, float factor, ELEMENT* target, i64 column_stride, int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) target[i * column_stride] = Element<ELEMENT>::from(sum.x[i] * factor);
}

// Write dk or dv of the split tiles. Grid (parts, kv_heads, batch): the block of the first part of a tile adds them
// all.
//
//   sums     float32 (batch, kv_heads, parts, block_keys, block), see key_grads.cu; block: HEAD_BLOCK or VALUE_BLOCK
//   target   (batch, tokens, kv_heads, width), any strides
//   split_ptr, tile_lo, tile_hi   as in key_grads.cu;  factor: on the sums
KERNEL(join_segments)(const float* sums, ELEMENT* target, const int* split_ptr, const int* tile_lo, const int* tile_hi,
                      i64 stride_b, i64 stride_l, i64 stride_h, i64 stride_d, int key_tiles, int parts, int block_keys,
                      int block, int width, float factor) {
    const int number = block_x(), kv_head = block_y(), batch = block_z();
    const i64 lane = i64(batch) * grid_y() + kv_head;
    split_ptr += lane * (key_tiles + 1);
    const int tile = find_start(split_ptr, number, key_tiles), end = split_ptr[tile + 1];
    if (split_ptr[tile] != number || number >= end) return;
    const int lo = tile_lo[tile], keys = tile_hi[tile] - lo, fours = ceil_div(width, 4);
    const i64 part_size = i64(block_keys) * block;
    sums += (lane * parts + number) * part_size;
    target += batch * stride_b + kv_head * stride_h + lo * stride_l;
    for (int place = thread_index(); place < keys * fours; place += THREADS) {
        const int key = place / fours, column = place % fours * 4;
        Four sum{};
        for (int part = number; part < end; ++part) add(sum, sums + (part - number) * part_size + key * block + column);
        store(sum, factor, target + key * stride_l + column * stride_d, stride_d, width - column);
    }
}

// Write dq. Grid (tiles * pieces, heads, batch): a thread adds four numbers, and pieces of THREADS of them hold a tile.
//
//   tiles, parts    see planning/query_tiles.py: the place of row r in part p is parts[p] + r
//   anchor_parts    float32 (batch, heads, anchor_places, width)
//   routed_parts    float32 (batch, heads, rows, slots, width)
//   selected        int32 (batch, heads, rows, slots), contiguous; a slot counts where it names a chunk of its sample
//   run_of_row      int32 (rows,), null where there is one sample
//   run_base, run_stop   int32 (runs,), the chunks of a run's sample
//   dq              (batch, rows, heads, head_dim), any strides
//   width           head_dim in whole vectors of 4;  chunks: of all samples;  factor: on the sums
KERNEL(join_query_grads)(const int* tiles, const int* parts, const float* anchor_parts, const float* routed_parts,
                         const int* selected, const int* run_of_row, const int* run_base, const int* run_stop,
                         ELEMENT* dq, i64 stride_b, i64 stride_l, i64 stride_h, i64 stride_d, int pieces, int rows,
                         int anchor_places, int slots, int chunks, int width, int head_dim, float factor) {
    const int* tile = tiles + block_x() / pieces * 4;
    const int fours = width / 4, number = block_x() % pieces * THREADS + thread_index();
    const int place = number / fours, column = number % fours * 4;
    if (place >= tile[1]) return;
    const int row = tile[0] + place, part_end = tile[3];
    const i64 lane = i64(block_z()) * grid_y() + block_y(), at = lane * rows + row;
    const int run = run_of_row == nullptr ? 0 : run_of_row[row];
    const int count = run_of_row == nullptr ? chunks : run_stop[run] - run_base[run];
    Four sum{};
    for (int part = tile[2]; part < part_end; ++part)
        add(sum, anchor_parts + (lane * anchor_places + parts[part] + row) * width + column);
    for (int slot = 0; slot < slots; ++slot) {
        const int choice = selected[at * slots + slot];
        if (choice >= 0 && choice < count) add(sum, routed_parts + (at * slots + slot) * width + column);
    }
    store(sum, factor, dq + block_z() * stride_b + row * stride_l + block_y() * stride_h + column * stride_d, stride_d,
          head_dim - column);
}

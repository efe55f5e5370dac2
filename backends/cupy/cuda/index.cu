// The chunk-major index of a selection: a stable counting sort of its entries, row * slots + slot, by chunk.
//
// Counts go to (chunk, tile of rows), chunk-major: one running sum over them gives the place of every tile's first
// entry of every chunk. Each tile then places its entries in order, so that the sort is stable and always comes out the
// same. From the sizes of the lists follow the tiles that the kernels of pairs take, which never reach the host either.
//
// Chunk numbers of `selected` count from the first chunk of a sample; here all samples' chunks are numbered together.
//
// Constants: THREADS, a multiple of 32; SHARED_BYTES = THREADS / 32 * 4, for the running sums.
#include "faults.cuh"
#include "scan.cuh"

static_assert(SCAN_BYTES == SHARED_BYTES, "the host counts alike");

// selected: int32 (rows, slots), of one batch row and head.
// run_of_row: int32 (rows,), null where there is one sample; run_base, run_stop: int32 (runs,), the sample's chunks.
struct Selection {
    const int* selected;
    const int* run_of_row;
    const int* run_base;
    const int* run_stop;
    int slots;
    int chunks;
    u32* fault;

    // The chunk of an entry, -1 where there is none.
    DEVICE int chunk_of(int entry) const {
        const int chosen = selected[entry];
        if (chosen == -1) return -1;
        int base = 0, count = chunks;
        if (run_of_row != nullptr) {
            const int run = run_of_row[entry / slots];
            base = run_base[run];
            count = run_stop[run] - base;
        }
        if (chosen < 0 || chosen >= count) {
            report(fault, FAULT_CHUNK, chosen, entry / slots);
            return -1;
        }
        return base + chosen;
    }
};

// ---- counting and placing -------------------------------------------------------------------------------------------
// Count the entries of each chunk in a tile of tile_rows rows. Grid (tiles, heads, batch).
//
// selected: int32 (batch, heads, rows, slots), contiguous.
// counts: int32 (batch, heads, chunks, tiles), zero.
KERNEL(count_entries)(const int* selected, const int* run_of_row, const int* run_base, const int* run_stop, int* counts,
                      int rows, int tile_rows, int slots, int chunks, u32* fault) {
    const int tile = block_x(), tiles = grid_x();
    const i64 list = i64(block_z()) * grid_y() + block_y();
    const Selection own{selected + list * rows * slots, run_of_row, run_base, run_stop, slots, chunks, fault};
    int* column = counts + list * chunks * tiles + tile;
    const int end = smaller((tile + 1) * tile_rows, rows) * slots;
    for (int first = tile * tile_rows * slots; first < end; first += THREADS) {
        const int entry = first + thread_index();
        const int chunk = entry < end ? own.chunk_of(entry) : -1;
        // Neighbouring rows choose alike: one addition for all lanes that name the same chunk.
        const u32 same = warp_match(chunk);
        const bool lowest = (same & ((1u << lane_index()) - 1)) == 0;
        if (chunk >= 0 && lowest) atomic_add(column + i64(chunk) * tiles, count_bits(same));
    }
}

// Turn counts into places, in order of chunk and tile. Grid (1, heads, batch).
//
// places: int32 (batch, heads, chunks, tiles), the counts; each becomes the sum of those before it.
// ptr: int32 (batch, heads, chunks + 1), the place of each chunk's first entry, and how many entries there are.
KERNEL(scan_counts)(int* places, int* ptr, int chunks, int tiles) {
    SHARED_MEMORY(memory);
    const i64 list = i64(block_z()) * grid_y() + block_y();
    int* own = places + list * chunks * tiles;
    int* starts = ptr + list * (chunks + 1);
    const int total = running_sum(
        chunks * tiles, reinterpret_cast<int*>(memory), [&](int i) { return own[i]; },
        [&](int i, int before) {
            own[i] = before;
            if (i % tiles == 0) starts[i / tiles] = before;
        });
    if (thread_index() == 0) starts[chunks] = total;
}

// Write the entries of a tile of rows to their places, a warp to a tile. Grid (ceil(tiles / warps), heads, batch).
//
// selected, run_of_row, run_base, run_stop: as in `count_entries`.
// places: int32 (batch, heads, chunks, tiles); each belongs to one warp alone, which moves it on.
// entries: int32 (batch, heads, rows * slots), row * slots + slot by chunk, ascending in each.
KERNEL(place_entries)(const int* selected, const int* run_of_row, const int* run_base, const int* run_stop, int* places,
                      int* entries, int rows, int tile_rows, int slots, int chunks, int tiles, u32* fault) {
    const int tile = block_x() * (THREADS / 32) + warp_index(), lane = lane_index();
    if (tile >= tiles) return;
    const i64 list = i64(block_z()) * grid_y() + block_y();
    const Selection own{selected + list * rows * slots, run_of_row, run_base, run_stop, slots, chunks, fault};
    int* column = places + list * chunks * tiles + tile;
    int* out = entries + list * rows * slots;
    const int end = smaller((tile + 1) * tile_rows, rows) * slots;
    const auto chunk_at = [&](int entry) { return entry < end ? own.chunk_of(entry) : -1; };
    int chunk = chunk_at(tile * tile_rows * slots + lane);
    for (int first = tile * tile_rows * slots; first < end; first += 32) {
        const int following = chunk_at(first + 32 + lane);  // under way while this step's entries are placed
        const u32 same = warp_match(chunk);
        const int before = count_bits(same & ((1u << lane) - 1));
        int place = 0;
        if (chunk >= 0 && before == 0) {
            int* next = column + i64(chunk) * tiles;
            place = *next;
            *next = place + count_bits(same);
        }
        place = shuffle(place, count_bits((same & (0u - same)) - 1));
        if (chunk >= 0) out[place + before] = first + lane;
        sync_warp();  // the next step may move the same place by another lane
        chunk = following;
    }
}

// ---- tiles of the lists ---------------------------------------------------------------------------------------------
// The first tile of each chunk's list, for tiles of `rows` entries. Grid (1, heads, batch).
//
// ptr, tile_ptr: int32 (batch, heads, chunks + 1); the last of tile_ptr is the number of tiles.
KERNEL(tile_starts)(const int* ptr, int* tile_ptr, int chunks, int rows) {
    SHARED_MEMORY(memory);
    const i64 list = (i64(block_z()) * grid_y() + block_y()) * (chunks + 1);
    const int total = running_sum(
        chunks, reinterpret_cast<int*>(memory),
        [&](int c) { return (ptr[list + c + 1] - ptr[list + c] + rows - 1) / rows; },
        [&](int c, int before) { tile_ptr[list + c] = before; });
    if (thread_index() == 0) tile_ptr[list + chunks] = total;
}

// The parts that lie before each tile of keys, where the work of those with more than `segment` tiles of rows is split
// into parts of so many. Grid (1, kv_heads, batch).
//
// ptr: int32 (batch, kv_heads * group, chunks + 1).
// tile_chunk, work: int32 (key_tiles,), see `key_tiles.KeyTiles`; work: tiles of anchored rows for one query head.
// split_ptr: int32 (batch, kv_heads, key_tiles + 1).
KERNEL(split_starts)(const int* ptr, const int* tile_chunk, const int* work, int* split_ptr, int chunks, int key_tiles,
                     int group, int rows, int segment) {
    SHARED_MEMORY(memory);
    const i64 lane = i64(block_z()) * grid_y() + block_y();
    const int* lists = ptr + lane * group * (chunks + 1);
    int* starts = split_ptr + lane * (key_tiles + 1);
    const auto parts_of = [&](int tile) {
        int tiles = work[tile] * group;
        for (int head = 0; head < group; ++head) {
            const int* list = lists + i64(head) * (chunks + 1) + tile_chunk[tile];
            tiles += (list[1] - list[0] + rows - 1) / rows;
        }
        return tiles > segment ? (tiles + segment - 1) / segment : 0;
    };
    const int total = running_sum(key_tiles, reinterpret_cast<int*>(memory), parts_of,
                                  [&](int tile, int before) { starts[tile] = before; });
    if (thread_index() == 0) starts[key_tiles] = total;
}

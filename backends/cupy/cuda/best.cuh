// Running lists of the best chunks, in shared memory: heaps of keys with the worst on top.
//
// A key is rank << 32 | (chunk ^ LAST): the higher key is the better chunk, keys are unique, and ties of the rank go to
// the lower chunk, for chunk ^ LAST is LAST - chunk. A free slot holds FREE, below every key of a chunk, for ranks
// start at 1.
// The slots of neighbouring lists lie interleaved, slot by slot: lanes that each walk a list meet in no bank.
#pragma once

#include "numbers.cuh"
#include "units.cuh"

constexpr u32 LAST = 0x7fffffffu;
constexpr u64 FREE = 0;
// Above every key.
constexpr u64 CLOSED = ~u64(0);

DEVICE u64 key_of(u32 rank, int chunk) { return (u64(rank) << 32) | (u32(chunk) ^ LAST); }
// The chunk of a key, LAST of a free slot.
DEVICE int chunk_of(u64 key) { return int(u32(key) ^ LAST); }

// LISTS: how many lie interleaved. `keys` is the first slot of this one; its slots hold FREE at first.
template <int LISTS>
struct BestList {
    u64* keys;
    int count;

    DEVICE u64 worst() const { return count > 0 ? keys[0] : CLOSED; }

    // Put a key in the place of the worst one, if it is better. One lane calls it.
    DEVICE void offer(u64 key) const {
        if (key <= worst()) return;
        int place = 0;
        for (int child = 1; child < count; child = 2 * place + 1) {
            u64 least = keys[child * LISTS];
            if (child + 1 < count && keys[(child + 1) * LISTS] < least) least = keys[++child * LISTS];
            if (key <= least) break;
            keys[place * LISTS] = least;
            place = child;
        }
        keys[place * LISTS] = key;
    }
};

// Put the chunks of the lists, each list ascending, into the high words of the keys, -1 beyond them. All lanes of a
// warp call it, and see the lists of all others afterwards. SLOTS: of each list; the low words stay.
template <int LISTS, int SLOTS>
DEVICE void order_chunks(u64* keys) {
    constexpr u64 LOW = 0xffffffffu;
    sync_warp();
    for (int i = lane_index(); i < LISTS * SLOTS; i += 32) keys[i] |= ~LOW;
    sync_warp();
    for (int i = lane_index(); i < LISTS * SLOTS; i += 32) {
        const int chunk = chunk_of(keys[i]), list = i % LISTS;
        if (chunk == int(LAST)) continue;
        int place = 0;
        for (int slot = 0; slot < SLOTS; ++slot) place += chunk_of(keys[slot * LISTS + list]) < chunk;
        u64& target = keys[place * LISTS + list];
        target = (u64(u32(chunk)) << 32) | (target & LOW);
    }
    sync_warp();
}

// Write the ordered chunks of a list to the rows of its unit, counted from `base`; -1 to rows that are no query. All
// lanes of a warp call it, with the same arguments.
//
// selected: int32 (rows, slots), of one batch row and head.
template <int LISTS, int SLOTS>
DEVICE void write_rows(int* selected, const u64* keys, int list, const Unit& unit, int base, int slots) {
    int* out = selected + i64(unit.row) * slots;
    for (int i = lane_index(); i < unit.count * slots; i += 32) {
        const int member = i / slots, slot = i % slots;
        const bool query = unit.row + member < unit.row_hi;
        const int chunk = query && slot < SLOTS ? int(keys[slot * LISTS + list] >> 32) : -1;
        out[i] = chunk < 0 ? -1 : chunk - base;
    }
}

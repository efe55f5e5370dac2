// Route dropout: random routes taken away, random candidates added, the same on every backend.
//
// The words come from Philox4x32-10 with the key = seed and the counter = (batch, head, position of the unit, draw):
// draw 0 says how many routes go and how many come, draw 1 + j / 4 holds the own word of chunk j of the sample, word j
// % 4. The routes with the smallest words go, of the other candidates those with the smallest words come; ties to the
// lower chunk.
//
// Constants: THREADS, 32 to a unit; LIST_SLOTS, a power of two, at least `slots`; SHARED_BYTES = THREADS / 32 *
// LIST_SLOTS * 8.
#include "best.cuh"
#include "candidates.cuh"
#include "faults.cuh"
#include "philox.cuh"

constexpr int WARPS = THREADS / 32;
static_assert(WARPS * LIST_SLOTS * 8 == SHARED_BYTES, "the host counts alike");

// The random words of a unit. Keys of chunks order as `best.cuh` says: the smallest word is the best.
struct Draws {
    PhiloxKey seed;
    u32 batch;
    u32 head;
    u32 position;

    DEVICE RandomWords draw(int number) const { return philox(seed, batch, head, position, u32(number)); }
    DEVICE static u64 key(u32 word, int chunk) { return key_of(~word, chunk); }
    DEVICE u64 key_of_chunk(int chunk) const {
        const RandomWords words = draw(1 + chunk / 4);
        const u32 low = chunk % 2 == 0 ? words.word[0] : words.word[1];
        const u32 high = chunk % 2 == 0 ? words.word[2] : words.word[3];
        return key(chunk % 4 < 2 ? low : high, chunk);
    }
};

// How many routes a unit loses, and how many others come, at most.
struct Counts {
    int removed;
    int added;
};

DEVICE Counts counts_of(const Draws& draws, int routes, u32 off, const i64* thresholds, int into_max) {
    const RandomWords words = draws.draw(0);
    Counts counts{int((u64(words.word[0]) * off * u32(routes)) >> 48), 0};
    for (int i = 0; i < into_max; ++i) counts.added += i64(words.word[1]) >= thresholds[i];
    return counts;
}

// Read the routes of a row as keys, FREE where there are none, and return how many there are.
DEVICE int read_routes(u64* keys, const int* row, int slots, int chunks, const Draws& draws, u32* fault, int where) {
    int routes = 0;
    for (int first = 0; first < slots; first += 32) {
        const int slot = first + lane_index();
        int chunk = slot < slots ? row[slot] : -1;
        if (chunk != -1 && (chunk < 0 || chunk >= chunks)) {
            report(fault, FAULT_CHUNK, chunk, where);
            chunk = -1;
        }
        if (slot < slots) keys[slot] = chunk < 0 ? FREE : draws.key_of_chunk(chunk);
        routes += count_bits(warp_ballot(chunk >= 0));
    }
    sync_warp();
    return routes;
}

// Offer the candidates begin ... end - 1, numbers within the sample, that are no routes. 4 divides begin.
DEVICE void draw_others(const BestList<1>& list, const u64* keys, int slots, const CandidateTables& tables,
                        const Unit& unit, int base, int begin, int end, const Draws& draws) {
    const auto is_route = [&](int chunk) {
        for (int slot = 0; slot < slots; ++slot)
            if (chunk_of(keys[slot]) == chunk) return true;
        return false;
    };
    for (int start = begin; start < end; start += 128) {
        const int first = start + lane_index() * 4;
        const RandomWords words = draws.draw(1 + first / 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int chunk = first + i;
            const u64 key = Draws::key(words.word[i], chunk);
            const bool other = chunk < end && key > list.worst() && tables.takes(unit, base + chunk) &&
                               !is_route(chunk);
            // The few lanes that have something to offer do so one after another.
            for (u32 lanes = warp_ballot(other); lanes != 0; lanes &= lanes - 1) {
                if (count_bits((lanes & (0u - lanes)) - 1) == lane_index()) list.offer(key);
                sync_warp();
            }
        }
    }
}

// Free the slots of the `removed` best keys.
DEVICE void remove_routes(u64* keys, int slots, int removed) {
    u32 gone = 0;  // of the slots lane, lane + 32, ...
    for (int slot = lane_index(), i = 0; slot < slots; slot += 32, ++i) {
        int better = 0;
        for (int other = 0; other < slots; ++other) better += keys[other] > keys[slot];
        gone |= u32(better < removed) << i;
    }
    sync_warp();
    for (int slot = lane_index(), i = 0; slot < slots; slot += 32, ++i) {
        if ((gone >> i & 1u) != 0) keys[slot] = FREE;
    }
}

// Apply route dropout to a selection, in place. Grid (ceil(units / WARPS), heads, batch); a warp takes a unit.
//
// selected: int32 (batch, heads, rows, slots), contiguous; routes before dropout lie in the first slots - into_max.
// unit_row, unit_rows, unit_run, unit_runs, unit_position, unit_sample: int32 (units,), see `geometry.Units`.
// run_lo, run_hi, run_chunk, run_base, near_first, stops, bits, first, last: as in route.cu; run_stop: int32 (runs,),
// the chunk after the last of the run's sample.
// envelope: int32 (tiles, 2), for each block the range of chunks that holds its candidates, counted from the first
// chunk of the sample, from a multiple of 4 on.
// seed: int64 (), or null: then seed_low and seed_high are its words.
// thresholds: int64 (into_max,), see `spec.philox.poisson_table`. off: floor(p_max * 2^16).
// batch_start, head_start: global numbers of the first batch row and head.
KERNEL(drop_routes)(int* selected, const int* unit_row, const int* unit_rows, const int* unit_run, const int* unit_runs,
                    const int* unit_position, const int* unit_sample, const int* run_lo, const int* run_hi,
                    const int* run_chunk, const int* run_base, const int* run_stop, const int* near_first,
                    const int* stops, const int* bits, const int* first, const int* last, const int* envelope,
                    const i64* seed, const i64* thresholds, i64 stride_stops, i64 stride_bits, i64 stride_near,
                    u32 seed_low, u32 seed_high, u32 off, u32 batch_start, u32 head_start, int units, int rows,
                    int words, int near, int reach, int q_start, int slots, int into_max, u32* fault) {
    SHARED_MEMORY(memory);
    const int tile = grid_x() - 1 - block_x(), head = block_y(), number = tile * WARPS + warp_index();
    const i64 batch = block_z();
    if (number >= units) return;
    const UnitTables unit_tables{unit_row, unit_rows, unit_run, unit_runs, run_chunk, stops + batch * stride_stops,
                                 units, q_start};
    const Unit unit = unit_at(unit_tables, number);
    int* out = selected + (batch * grid_y() + head) * rows * slots;
    u64* keys = reinterpret_cast<u64*>(memory) + warp_index() * LIST_SLOTS;
    for (int i = lane_index(); i < LIST_SLOTS; i += 32) keys[i] = FREE;
    sync_warp();
    if (unit.valid()) {
        const CandidateTables tables{run_lo, run_hi, bits + batch * stride_bits, first + batch * stride_near,
                                     last + batch * stride_near, near_first, words, near, reach, q_start};
        const PhiloxKey key = seed == nullptr ? PhiloxKey{seed_low, seed_high}
                                              : PhiloxKey{u32(u64(*seed)), u32(u64(*seed) >> 32)};
        const Draws draws{key, u32(batch) + batch_start + u32(unit_sample[number]), u32(head) + head_start,
                          u32(unit_position[number])};
        const int base = run_base[unit.run], chunks = run_stop[unit.run] - base, kept = slots - into_max;
        const int routes = read_routes(keys, out + i64(unit.row) * slots, kept, chunks, draws, fault, unit.row);
        const Counts counts = counts_of(draws, routes, off, thresholds, into_max);
        if (counts.added > 0) {
            const BestList<1> list{keys + kept, counts.added};
            draw_others(list, keys, kept, tables, unit, base, envelope[2 * tile], envelope[2 * tile + 1], draws);
        }
        remove_routes(keys, kept, counts.removed);
    }
    order_chunks<1, LIST_SLOTS>(keys);
    write_rows<1, LIST_SLOTS>(out, keys, 0, unit, 0, slots);
}

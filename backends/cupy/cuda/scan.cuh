// Running sums over the threads of a block.
#pragma once

#include "machine.cuh"

constexpr int SCAN_WARPS = THREADS / 32;
// Shared memory that a running sum needs.
constexpr int SCAN_BYTES = SCAN_WARPS * 4;

// What the threads before this one hold together, and all of them.
struct Scan {
    int before;
    int total;
};

DEVICE Scan scan_block(int value, int* sums) {
    const int lane = lane_index(), warp = warp_index();
    int upto = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int below = shuffle_up(upto, distance);
        if (lane >= distance) upto += below;
    }
    if (lane == 31) sums[warp] = upto;
    sync_block();
    Scan scan{upto - value, 0};
#pragma unroll
    for (int w = 0; w < SCAN_WARPS; ++w) {
        if (w < warp) scan.before += sums[w];
        scan.total += sums[w];
    }
    sync_block();  // nobody writes the next sums before all have read these
    return scan;
}

// Call store(i, sum of value(j) for j < i) for i = 0 ... count - 1, and return the sum of all. value(i) is called
// before store(i), and by the same thread.
template <class Value, class Store>
DEVICE int running_sum(int count, int* sums, Value value, Store store) {
    constexpr int ITEMS = 4;  // to a thread: as many loads are under way at once
    int before = 0;
    for (int first = 0; first < count; first += THREADS * ITEMS) {
        const int own = first + thread_index() * ITEMS;
        int values[ITEMS], sum = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            values[i] = own + i < count ? value(own + i) : 0;
            sum += values[i];
        }
        const Scan scan = scan_block(sum, sums);
        int upto = before + scan.before;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (own + i < count) store(own + i, upto);
            upto += values[i];
        }
        before += scan.total;
    }
    return before;
}

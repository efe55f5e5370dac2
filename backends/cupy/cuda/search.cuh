// Bisection by a warp.
#pragma once

#include "numbers.cuh"

// The largest c in 0 ... count - 1 with starts[c] <= number; starts ascend, starts[0] <= number < starts[count]. All lanes
// of a warp call it with the same arguments: each step probes 32 places, so that few loads wait for each other.
DEVICE int find_start(const int* starts, int number, int count) {
    int lo = 0, hi = count;
    while (hi - lo > 1) {
        const int step = ceil_div(hi - lo, 32), probe = lo + lane_index() * step;
        const int before = count_bits(warp_ballot(probe < hi && starts[probe] <= number));
        hi = smaller(hi, lo + before * step);
        lo += (before - 1) * step;
    }
    return lo;
}

// Philox4x32-10: the random words that are the same on every backend, see spec/philox.py.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "machine.cuh"

struct PhiloxKey {
    u32 low;
    u32 high;
};
struct RandomWords {
    u32 word[4];
};

DEVICE RandomWords philox(PhiloxKey key, u32 c0, u32 c1, u32 c2, u32 c3) {
    constexpr u32 FIRST = 0xD2511F53u, SECOND = 0xCD9E8D57u;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = multiply_high(FIRST, c0), low0 = FIRST * c0;
        const u32 high1 = multiply_high(SECOND, c2), low1 = SECOND * c2;
        c0 = high1 ^ c1 ^ key.low;
        c1 = low1;
        c2 = high0 ^ c3 ^ key.high;
        c3 = low0;
        // The golden ratio and sqrt(3) - 1, as 32-bit fractions.
        key.low += 0x9E3779B9u;
        key.high += 0xBB67AE85u;
    }
    return RandomWords{{c0, c1, c2, c3}};
}

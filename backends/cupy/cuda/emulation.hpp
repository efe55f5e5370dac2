// The machine that the kernels are written over, on a CPU: every name of `intrinsics.cuh`, with the same meaning there.
//
// For tests without a GPU, and fast enough for no more. A rule that a GPU leaves to the kernel's author is checked here
// where it can be: all lanes at the same instruction, alignment, bounds of shared memory, copies that nobody waited for.
#pragma once

#include "emulation_grid.hpp"

#define KERNEL(name) [[maybe_unused]] static void name
#define SHARED_MEMORY(name) unsigned char* const name = emulation::machine.shared

// ---- where a thread is ----------------------------------------------------------------------------------------------
DEVICE int thread_index() { return emulation::machine.thread; }
DEVICE int lane_index() { return emulation::machine.thread % emulation::WARP; }
DEVICE int block_x() { return emulation::machine.block[0]; }
DEVICE int block_y() { return emulation::machine.block[1]; }
DEVICE int block_z() { return emulation::machine.block[2]; }
DEVICE int grid_x() { return emulation::machine.grid[0]; }
DEVICE int grid_y() { return emulation::machine.grid[1]; }
DEVICE int opaque(int x) { return x; }

// ---- meeting the other threads of a block or a warp -----------------------------------------------------------------
namespace emulation {
namespace {

struct Nothing {};

struct Vote {
    bool here;
    u32 ballot;
};

struct Exchange {
    u32 bits;
    int source;  // A lane.
    u32 result;
};

void pass_by(const char* what) {
    Nothing nothing;
    meet_warp(what, nothing, [](Lanes<Nothing>) {});
}

u32 vote(const char* what, bool here) {
    Vote mine{here, 0};
    meet_warp(what, mine, [](Lanes<Vote> lanes) {
        u32 ballot = 0;
        for (int i = 0; i < WARP; ++i) ballot |= u32(lanes[i].here) << i;
        for (int i = 0; i < WARP; ++i) lanes[i].ballot = ballot;
    });
    return mine.ballot;
}

u32 exchange(const char* what, u32 bits, int source) {
    Exchange mine{bits, source, 0};
    meet_warp(what, mine, [](Lanes<Exchange> lanes) {
        for (int i = 0; i < WARP; ++i) lanes[i].result = lanes[lanes[i].source].bits;
    });
    return mine.result;
}

u32 match(const char* what, u32 bits) {
    Exchange mine{bits, 0, 0};
    meet_warp(what, mine, [](Lanes<Exchange> lanes) {
        for (int i = 0; i < WARP; ++i) {
            for (int j = 0; j < WARP; ++j) lanes[i].result |= u32(lanes[i].bits == lanes[j].bits) << j;
        }
    });
    return mine.result;
}

}  // namespace
}  // namespace emulation

DEVICE int warp_index() {
    emulation::pass_by("warp_index");
    return emulation::machine.thread / emulation::WARP;
}
DEVICE void sync_block() { emulation::meet_block("sync_block", false); }
DEVICE bool sync_block_any(bool here) { return emulation::meet_block("sync_block_any", here); }
DEVICE void sync_warp() { emulation::pass_by("sync_warp"); }
DEVICE bool warp_any(bool here) { return emulation::vote("warp_any", here) != 0; }
DEVICE u32 warp_ballot(bool here) { return emulation::vote("warp_ballot", here); }
DEVICE u32 warp_match(int value) { return emulation::match("warp_match", u32(value)); }
DEVICE int shuffle(int value, int lane) { return int(emulation::exchange("shuffle", u32(value), lane & 31)); }
DEVICE float shuffle(float value, int lane) {
    return float_of(emulation::exchange("shuffle", bits_of(value), lane & 31));
}
DEVICE int shuffle_xor(int value, int mask) {
    return int(emulation::exchange("shuffle_xor", u32(value), lane_index() ^ (mask & 31)));
}
DEVICE float shuffle_xor(float value, int mask) {
    return float_of(emulation::exchange("shuffle_xor", bits_of(value), lane_index() ^ (mask & 31)));
}
DEVICE int shuffle_up(int value, int distance) {
    const int lane = lane_index();
    return int(emulation::exchange("shuffle_up", u32(value), distance > lane ? lane : lane - distance));
}

// ---- asynchronous copies from global to shared memory ---------------------------------------------------------------
namespace emulation {
namespace {

// The offset of a place in shared memory with 16 bytes behind it, at a multiple of 16.
u32 checked_address(const char* what, const void* pointer) {
    const i64 address = static_cast<const unsigned char*>(pointer) - machine.shared;
    const bool outside = address < 0 || address + 16 > machine.shared_bytes;
    if (outside || address % 16 != 0) {
        fail("thread %d of " EMULATION_BLOCK ": %s at byte %lld, %s", machine.thread, EMULATION_BLOCK_VALUES, what,
             address, outside ? "outside shared memory" : "no multiple of 16");
    }
    return u32(address);
}

void perform(const Copy& copy) {
    if (copy.valid) {
        memcpy(copy.target, copy.source, 16);
    } else {
        memset(copy.target, 0, 16);
    }
}

// Perform the copies of the groups before `group`.
void perform_before(int group) {
    std::vector<Copy>& copies = machine.fibers[machine.fiber].copies;
    size_t done = 0;
    for (; done < copies.size() && copies[done].group < group; ++done) perform(copies[done]);
    copies.erase(copies.begin(), copies.begin() + done);
}

}  // namespace
}  // namespace emulation

DEVICE u32 shared_address(const void* pointer) { return emulation::checked_address("shared_address", pointer); }
DEVICE void copy_async(void* target, const void* source, bool valid) {
    emulation::Machine& machine = emulation::machine;
    emulation::Fiber& fiber = machine.fibers[machine.fiber];
    if (reinterpret_cast<u64>(source) % 16 != 0) {
        emulation::fail("thread %d of " EMULATION_BLOCK ": copy_async from %p, no multiple of 16", machine.thread,
                        EMULATION_BLOCK_VALUES, source);
    }
    emulation::checked_address("copy_async", target);
    const emulation::Copy copy{target, source, valid, fiber.groups};
    if (machine.reverse) {
        emulation::perform(copy);
    } else {
        fiber.copies.push_back(copy);
    }
}
DEVICE void commit_copies() { ++emulation::machine.fibers[emulation::machine.fiber].groups; }
template <int PENDING>
DEVICE void wait_copies() {
    emulation::perform_before(emulation::machine.fibers[emulation::machine.fiber].groups - PENDING);
}

// ---- matrices of 8 x 8 16-bit numbers -------------------------------------------------------------------------------
namespace emulation {
namespace {

struct Rows {
    u32* out;
    const unsigned char* row;
    u16 at(int column) const {
        u16 bits;
        memcpy(&bits, row + 2 * column, sizeof bits);
        return bits;
    }
};

struct Factors {
    float* c;
    const u32* a;
    const u32* b;
};

// Four columns of a matrix; wider ones would not stay in the registers that every x86-64 has.
using Quad = float __attribute__((vector_size(16)));

DEVICE Quad quad_at(const float* numbers) {
    Quad quad;
    memcpy(&quad, numbers, sizeof quad);
    return quad;
}

// c += a b, all by rows, each sum by rising k. Two rows at a time: four sums that do not wait for one another.
void multiply_matrices(float* c, const float* a, const float* b) {
    for (int row = 0; row < 16; row += 2, c += 2 * 8, a += 2 * 16) {
        Quad sums[4] = {quad_at(c), quad_at(c + 4), quad_at(c + 8), quad_at(c + 12)};
        for (int k = 0; k < 16; ++k) {
            sums[0] += a[k] * quad_at(b + 8 * k);
            sums[1] += a[k] * quad_at(b + 8 * k + 4);
            sums[2] += a[k + 16] * quad_at(b + 8 * k);
            sums[3] += a[k + 16] * quad_at(b + 8 * k + 4);
        }
        memcpy(c, sums, sizeof sums);
    }
}

template <float value(u16)>
void multiply(const char* what, float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    Factors mine{c, a, b};
    meet_warp(what, mine, [](Lanes<Factors> lanes) {
        u16 bits[16 * 16 + 16 * 8];
        float factors[16 * 16 + 16 * 8], sums[16 * 8];
        for (int lane = 0; lane < WARP; ++lane) {
            const int g = lane / 4, t = lane % 4;
            const Factors& held = lanes[lane];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                memcpy(&bits[(g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8], &held.a[i], 4);
                sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = held.c[i];
            }
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                bits[256 + (2 * t + 8 * i) * 8 + g] = u16(held.b[i]);
                bits[256 + (2 * t + 8 * i + 1) * 8 + g] = u16(held.b[i] >> 16);
            }
        }
        for (int i = 0; i < 16 * 16 + 16 * 8; ++i) factors[i] = value(bits[i]);
        multiply_matrices(sums, factors, factors + 256);
        for (int lane = 0; lane < WARP; ++lane) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) lanes[lane].c[i] = sums[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
        }
    });
}

}  // namespace
}  // namespace emulation

DEVICE void load_matrices(u32 (&out)[4], const void* row) {
    emulation::checked_address("load_matrices", row);
    emulation::Rows mine{out, static_cast<const unsigned char*>(row)};
    emulation::meet_warp("load_matrices", mine, [](emulation::Lanes<emulation::Rows> lanes) {
        for (int lane = 0; lane < emulation::WARP; ++lane) {
            for (int i = 0; i < 4; ++i) memcpy(&lanes[lane].out[i], lanes[8 * i + lane / 4].row + 4 * (lane % 4), 4);
        }
    });
}
DEVICE void load_matrices_transposed(u32 (&out)[4], const void* row) {
    emulation::checked_address("load_matrices_transposed", row);
    emulation::Rows mine{out, static_cast<const unsigned char*>(row)};
    emulation::meet_warp("load_matrices_transposed", mine, [](emulation::Lanes<emulation::Rows> lanes) {
        for (int lane = 0; lane < emulation::WARP; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const int even = 8 * i + 2 * (lane % 4);
                lanes[lane].out[i] = lanes[even].at(lane / 4) | u32(lanes[even + 1].at(lane / 4)) << 16;
            }
        }
    });
}
DEVICE void multiply_half(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply<half_value>("multiply_half", c, a, b);
}
DEVICE void multiply_bfloat(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply<bfloat_value>("multiply_bfloat", c, a, b);
}

// ---- memory that blocks share ---------------------------------------------------------------------------------------
// Atomic between host threads too: two libraries may run at once.
DEVICE int atomic_add(int* target, int value) { return __atomic_fetch_add(target, value, __ATOMIC_RELAXED); }
DEVICE u32 atomic_exchange_if(u32* target, u32 expected, u32 value) {
    __atomic_compare_exchange_n(target, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
DEVICE float atomic_add(float* target, float value) {
    u32* const bits = reinterpret_cast<u32*>(target);
    u32 before, seen = *bits;
    do {
        before = seen;
        seen = atomic_exchange_if(bits, before, bits_of(float_of(before) + value));
    } while (seen != before);
    return float_of(seen);
}

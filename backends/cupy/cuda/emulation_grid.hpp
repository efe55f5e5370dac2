// A grid of thread blocks on one CPU thread: blocks run one after another, the threads of a block as fibers.
//
// A thread runs until it must wait for others, then the next that can go on runs, in the order of the threads: what one
// call computes is the same every time. What a GPU leaves open is decided one way, and the other way after
// `emulate_in_reverse(1)`, so that a kernel that lacks a barrier or a wait gives a wrong or a different result in one of
// them: threads run from the first to the last (from the last to the first), asynchronous copies land as late as they
// may (at once).
//
// What breaks the machine's rules ends the run, and `run` returns a text that says who did what.
#pragma once

#include "emulation_fibers.hpp"

#include <fenv.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace emulation {
namespace {

// Write the guards at both ends of shared memory.
void set_guards() {
    for (int i = 0; i < GUARD_BYTES; i += sizeof GUARD) {
        memcpy(machine.shared - GUARD_BYTES + i, &GUARD, sizeof GUARD);
        memcpy(machine.shared + machine.shared_bytes + i, &GUARD, sizeof GUARD);
    }
}

void check_guards() {
    for (const int start : {-GUARD_BYTES, machine.shared_bytes}) {
        for (int i = 0; i < GUARD_BYTES; i += sizeof GUARD) {
            if (memcmp(machine.shared + start + i, &GUARD, sizeof GUARD) == 0) continue;
            fail(EMULATION_BLOCK ": shared memory has %d bytes, but about byte %d was written", EMULATION_BLOCK_VALUES,
                 machine.shared_bytes, start + i);
        }
    }
}

// The life of a fiber: in block after block it is the same thread.
void live() {
    for (;;) {
        machine.call(machine.body);
        Fiber& fiber = machine.fibers[machine.fiber];
        fiber.copies.clear();
        fiber.groups = 0;
        if (++machine.returned < machine.threads) {
            wait_at(RETURNED);
        } else {
            check_guards();
            if (_setjmp(fiber.registers) == 0) _longjmp(machine.home, FINISHED);
        }
    }
}

// False with `machine.failure` set.
__attribute__((noinline)) bool run_block() {
    memset(machine.shared, 0xff, machine.shared_bytes);
    machine.returned = 0;
    for (int i = 0; i < machine.warps; ++i) machine.warp[i].runnable = ALL_LANES;
    const int outcome = _setjmp(machine.home);
    if (outcome == 0) resume(0);
    return outcome == FINISHED;
}

void allocate_stacks(int threads) {
    const auto bytes = [](int stacks) { return (stacks + 1) * STACK_BYTES; };
    if (machine.stacks != nullptr) munmap(machine.stacks, bytes(machine.stacks_held));
    void* memory = mmap(nullptr, bytes(threads), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    // Only the upper end of each is used: huge pages would hold all of it.
    madvise(memory, bytes(threads), MADV_NOHUGEPAGE);
    machine.stacks = static_cast<char*>(memory);
    machine.stacks_held = threads;
}

void allocate_shared(int shared_bytes) {
    if (machine.shared != nullptr) free(machine.shared - GUARD_BYTES);
    const size_t bytes = (shared_bytes + 2 * GUARD_BYTES + 1023) / 1024 * 1024;
    auto* memory = static_cast<unsigned char*>(aligned_alloc(1024, bytes));
    if (memory == nullptr) abort();
    machine.shared = memory + GUARD_BYTES;
    machine.shared_held = shared_bytes;
}

// Fibers left in the middle of a kernel, or not there yet, begin anew.
void renew() {
    for (int i = 0; i < machine.stacks_held; ++i) {
        machine.fibers[i].started = false;
        machine.fibers[i].copies.clear();
        machine.fibers[i].groups = 0;
    }
    for (Warp& warp : machine.warp) warp.meeting.arrived = 0;
    machine.barrier.arrived = 0;
    machine.any_arrived = false;
}

void prepare(int threads, int shared_bytes) {
    machine.threads = threads;
    machine.warps = threads / WARP;
    if (threads > machine.stacks_held) {
        allocate_stacks(threads);
        renew();
    }
    if (machine.shared == nullptr || shared_bytes > machine.shared_held) allocate_shared(shared_bytes);
    for (int i = 0; i < threads; ++i) machine.fibers[i].thread = machine.reverse ? threads - 1 - i : i;
    machine.shared_bytes = shared_bytes;
    set_guards();
}

// A GPU rounds to nearest and keeps subnormal numbers, whatever the calling thread has set for its own arithmetic.
struct FloatingPoint {
    fenv_t callers;
    FloatingPoint() {
        fegetenv(&callers);
        fesetenv(FE_DFL_ENV);
    }
    ~FloatingPoint() { fesetenv(&callers); }
};

const char* run_grid(const int (&grid)[3], int threads, int shared_bytes, void (*call)(const void*), const void* body) {
    // Read by the caller after the next call may have begun.
    static thread_local char failure[sizeof machine.failure];
    if (threads < WARP || threads > MOST_THREADS || threads % WARP != 0 || shared_bytes < 0) {
        snprintf(failure, sizeof failure, "blocks of %d threads and %d bytes of shared memory", threads, shared_bytes);
        return failure;
    }
    std::lock_guard<std::mutex> lock(machine.alone);
    const FloatingPoint usual;
    machine.call = call;
    machine.body = body;
    prepare(threads, shared_bytes);
    memcpy(machine.grid, grid, sizeof machine.grid);
    int(&block)[3] = machine.block;
    for (block[2] = 0; block[2] < grid[2]; ++block[2]) {
        for (block[1] = 0; block[1] < grid[1]; ++block[1]) {
            for (block[0] = 0; block[0] < grid[0]; ++block[0]) {
                if (run_block()) continue;
                renew();
                memcpy(failure, machine.failure, sizeof failure);
                return failure;
            }
        }
    }
    return nullptr;
}

// Run `body`, a kernel with its arguments, as every thread of a grid. Nothing, or what went wrong.
template <class Body>
const char* run(int grid_x, int grid_y, int grid_z, int threads, int shared_bytes, const Body& body) {
    const auto call = [](const void* it) { (*static_cast<const Body*>(it))(); };
    return run_grid({grid_x, grid_y, grid_z}, threads, shared_bytes, call, &body);
}

}  // namespace
}  // namespace emulation

extern "C" __attribute__((visibility("default"))) void emulate_in_reverse(int on) {
    std::lock_guard<std::mutex> lock(emulation::machine.alone);
    emulation::machine.reverse = on != 0;
}

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

#undef _FORTIFY_SOURCE  // Its longjmp takes a jump to another stack for an error.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <mutex>
#include <vector>

#include "emulation_numbers.hpp"

namespace emulation {
// Internal linkage: two libraries in one process share nothing.
namespace {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;
constexpr u32 ALL_LANES = 0xffffffffu;
// An odd number of cache lines: stacks a power of two apart would all compete for the same few places of the caches.
constexpr size_t STACK_BYTES = 128 * 1024 + 21 * 64;
constexpr int GUARD_WORDS = 256;
// A NaN as a float and in both halves, and not what -1 writes.
constexpr u32 GUARD = 0xfffdfffdu;
constexpr const char* RETURNED = "";

struct Copy {
    unsigned char* target;
    const void* source;
    bool valid;
    int group;
};

struct Fiber {
    jmp_buf registers;
    bool started;
    int thread;
    const char* at;  // What it waits at, or RETURNED; of a fiber that can go on this means nothing.
    std::vector<Copy> copies;
    int groups;  // The copies committed so far, in groups.
};

// Threads that wait for one another at the same place.
struct Meeting {
    const char* what;
    int first;
    int arrived;
};

struct Warp {
    Meeting meeting;
    u32 runnable;  // Bit i: the i-th fiber of the warp can go on.
    void* operands[WARP];
};

struct Machine {
    int grid[3], block[3];
    int thread;  // The one that runs now, and its fiber.
    int fiber;
    int threads, warps, returned;
    unsigned char* shared;
    int shared_bytes;
    Meeting barrier;
    bool any_arrived, any;  // The `or` of those that arrived, and of the last barrier.
    bool reverse;
    void (*call)(const void*);
    const void* body;
    jmp_buf home;
    char* stacks;
    int stacks_held, shared_held;
    char failure[1000];
    std::mutex alone;
    Warp warp[MOST_THREADS / WARP];
    Fiber fibers[MOST_THREADS];
};

Machine machine;

enum Outcome { FINISHED = 1, FAILED = 2 };

[[noreturn]] void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(machine.failure, sizeof machine.failure, format, values);
    va_end(values);
    _longjmp(machine.home, FAILED);
}

#define EMULATION_BLOCK "block (%d, %d, %d)"
#define EMULATION_BLOCK_VALUES \
    emulation::machine.block[0], emulation::machine.block[1], emulation::machine.block[2]

// ---- fibers ----------------------------------------------------------------------------------------------------------------

// Called with nobody able to go on: say where everybody is, in runs of neighbours at the same place.
[[noreturn]] void fail_stuck() {
    char places[800] = "";
    size_t length = 0;
    const char* at[MOST_THREADS];
    for (int i = 0; i < machine.threads; ++i) at[machine.fibers[i].thread] = machine.fibers[i].at;
    for (int first = 0, last; first < machine.threads && length < sizeof places; first = last + 1) {
        for (last = first; last + 1 < machine.threads && at[last + 1] == at[first];) ++last;
        const bool one = first == last, returned = at[first] == RETURNED;
        char who[40];
        snprintf(who, sizeof who, one ? "thread %d" : "threads %d-%d", first, last);
        length += snprintf(places + length, sizeof places - length, "%s%s %s%s", first == 0 ? "" : ", ", who,
                           returned ? (one ? "has returned" : "have returned") : (one ? "waits at " : "wait at "),
                           at[first]);
    }
    fail(EMULATION_BLOCK ": no thread can go on: %s", EMULATION_BLOCK_VALUES, places);
}

// The fiber after this one that can go on, round and round.
int next_fiber() {
    int warp = machine.fiber / WARP;
    u32 runnable = machine.warp[warp].runnable & (ALL_LANES - 1) << machine.fiber % WARP;
    for (int hop = 0; runnable == 0; ++hop) {
        if (hop == machine.warps) fail_stuck();
        warp = warp + 1 == machine.warps ? 0 : warp + 1;
        runnable = machine.warp[warp].runnable;
    }
    return warp * WARP + __builtin_ctz(runnable);
}

void live();

[[noreturn]] void resume(int index) {
    Fiber& fiber = machine.fibers[index];
    machine.fiber = index;
    machine.thread = fiber.thread;
    if (fiber.started) _longjmp(fiber.registers, 1);
    fiber.started = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = machine.stacks + index * STACK_BYTES;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    setcontext(&context);
    abort();
}

__attribute__((noinline)) void switch_to(int index) {
    if (index != machine.fiber && _setjmp(machine.fibers[machine.fiber].registers) == 0) resume(index);
}

// Let others run until someone has set this fiber's bit again.
void wait_at(const char* what) {
    machine.fibers[machine.fiber].at = what;
    machine.warp[machine.fiber / WARP].runnable &= ~(1u << machine.fiber % WARP);
    switch_to(next_fiber());
}

void check_guards() {
    u32 before[GUARD_WORDS], after[GUARD_WORDS];
    memcpy(before, machine.shared - sizeof before, sizeof before);
    memcpy(after, machine.shared + machine.shared_bytes, sizeof after);
    for (int i = 0; i < GUARD_WORDS; ++i) {
        if (after[i] != GUARD) {
            fail(EMULATION_BLOCK ": shared memory has %d bytes, and byte %d was written", EMULATION_BLOCK_VALUES,
                 machine.shared_bytes, machine.shared_bytes + 4 * i);
        }
        if (before[i] != GUARD) {
            fail(EMULATION_BLOCK ": byte %d of shared memory was written", EMULATION_BLOCK_VALUES,
                 4 * (i - GUARD_WORDS));
        }
    }
}

void check_stacks() {
    for (int i = 0; i < machine.threads; ++i) {
        u32 end;
        memcpy(&end, machine.stacks + i * STACK_BYTES, sizeof end);
        if (end != GUARD) {
            fail("thread %d of " EMULATION_BLOCK ": more than %d bytes of stack", machine.fibers[i].thread,
                 EMULATION_BLOCK_VALUES, int(STACK_BYTES));
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
            check_stacks();
            if (_setjmp(fiber.registers) == 0) _longjmp(machine.home, FINISHED);
        }
    }
}

// ---- meeting -----------------------------------------------------------------------------------------------------------------

// Whether this thread completes the meeting.
bool arrive(Meeting& meeting, int size, const char* what) {
    if (meeting.arrived == 0) {
        meeting.what = what;
        meeting.first = machine.thread;
    } else if (meeting.what != what) {
        fail("warp %d of " EMULATION_BLOCK ": %s meet at different intrinsics: thread %d at %s, thread %d at %s",
             machine.thread / WARP, EMULATION_BLOCK_VALUES, size == WARP ? "lanes" : "threads of the block",
             meeting.first, meeting.what, machine.thread, what);
    }
    return ++meeting.arrived == size;
}

template <class Operands>
struct Lanes {
    void* const* operands;
    Operands& operator[](int lane) const { return *static_cast<Operands*>(operands[lane]); }
};

// All lanes of a warp come with operands; the last computes for all, then they go on in order.
template <class Operands, class Compute>
void meet_warp(const char* what, Operands& mine, Compute compute) {
    const int index = machine.fiber / WARP;
    Warp& warp = machine.warp[index];
    warp.operands[machine.thread % WARP] = &mine;
    if (!arrive(warp.meeting, WARP, what)) return wait_at(what);
    compute(Lanes<Operands>{warp.operands});
    warp.meeting.arrived = 0;
    warp.runnable = ALL_LANES;
    switch_to(index * WARP);
}

bool meet_block(const char* what, bool here) {
    if (here) machine.any_arrived = true;
    if (arrive(machine.barrier, machine.threads, what)) {
        machine.any = machine.any_arrived;
        machine.any_arrived = false;
        machine.barrier.arrived = 0;
        for (int i = 0; i < machine.warps; ++i) machine.warp[i].runnable = ALL_LANES;
        switch_to(0);
    } else {
        wait_at(what);
    }
    return machine.any;
}

// ---- running -----------------------------------------------------------------------------------------------------------------

void fill_guard(void* memory, int words) {
    for (int i = 0; i < words; ++i) memcpy(static_cast<u32*>(memory) + i, &GUARD, sizeof GUARD);
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

// Fibers left in the middle of a kernel, or not there yet, begin anew.
void renew(int threads) {
    if (threads > machine.stacks_held) {
        if (machine.stacks_held > 0) munmap(machine.stacks, machine.stacks_held * STACK_BYTES);
        machine.stacks_held = 0;
        void* stacks = mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) abort();
        // Only the upper end of each is used: huge pages would hold all of it.
        madvise(stacks, threads * STACK_BYTES, MADV_NOHUGEPAGE);
        machine.stacks = static_cast<char*>(stacks);
        machine.stacks_held = threads;
    }
    for (int i = 0; i < machine.stacks_held; ++i) {
        machine.fibers[i].started = false;
        machine.fibers[i].copies.clear();
        machine.fibers[i].groups = 0;
        fill_guard(machine.stacks + i * STACK_BYTES, 1);
    }
    for (Warp& warp : machine.warp) warp.meeting.arrived = 0;
    machine.barrier.arrived = 0;
    machine.any_arrived = false;
}

void prepare(int threads, int shared_bytes) {
    machine.threads = threads;
    machine.warps = threads / WARP;
    if (threads > machine.stacks_held) renew(threads);
    for (int i = 0; i < threads; ++i) machine.fibers[i].thread = machine.reverse ? threads - 1 - i : i;
    constexpr int GUARD_BYTES = GUARD_WORDS * sizeof(u32);
    if (machine.shared == nullptr || shared_bytes > machine.shared_held) {
        if (machine.shared != nullptr) free(machine.shared - GUARD_BYTES);
        const size_t bytes = (shared_bytes + 2 * GUARD_BYTES + 1023) / 1024 * 1024;
        auto* memory = static_cast<unsigned char*>(aligned_alloc(1024, bytes));
        if (memory == nullptr) abort();
        machine.shared = memory + GUARD_BYTES;
        machine.shared_held = shared_bytes;
    }
    machine.shared_bytes = shared_bytes;
    fill_guard(machine.shared - GUARD_BYTES, GUARD_WORDS);
    fill_guard(machine.shared + shared_bytes, GUARD_WORDS);
}

const char* run_grid(const int (&grid)[3], int threads, int shared_bytes, void (*call)(const void*), const void* body) {
    // Read by the caller after the next call may have begun.
    static thread_local char failure[sizeof machine.failure];
    if (threads < WARP || threads > MOST_THREADS || threads % WARP != 0 || shared_bytes < 0) {
        snprintf(failure, sizeof failure, "blocks of %d threads and %d bytes of shared memory", threads, shared_bytes);
        return failure;
    }
    std::lock_guard<std::mutex> lock(machine.alone);
    machine.call = call;
    machine.body = body;
    prepare(threads, shared_bytes);
    memcpy(machine.grid, grid, sizeof machine.grid);
    int(&block)[3] = machine.block;
    for (block[2] = 0; block[2] < grid[2]; ++block[2]) {
        for (block[1] = 0; block[1] < grid[1]; ++block[1]) {
            for (block[0] = 0; block[0] < grid[0]; ++block[0]) {
                if (run_block()) continue;
                renew(threads);
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

// The threads of a block as fibers of one CPU thread, and the places where they wait for one another.
//
// A thread runs until it must wait for others; then the next that can go on runs, in the order of the threads, so that
// what a call computes is the same every time. What breaks the machine's rules ends the call by `fail`.
#pragma once

// Its longjmp takes a jump to another stack for an error. Before the first header of all.
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
// What C and the report of a failure need below a thread's own frames.
constexpr size_t STACK_RESERVE = 8 * 1024;
constexpr int GUARD_BYTES = 1024;
// A NaN as a float and in both halves, and not what -1 writes.
constexpr u32 GUARD = 0xfffdfffdu;
constexpr const char* RETURNED = "";

struct Copy {
    void* target;
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

// ---- fibers ---------------------------------------------------------------------------------------------------------

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

// The lowest stack is nobody's: what overflows lands in our memory, until it is found.
char* stack_of(int index) { return machine.stacks + (index + 1) * STACK_BYTES; }

void live();

[[noreturn]] void resume(int index) {
    Fiber& fiber = machine.fibers[index];
    machine.fiber = index;
    machine.thread = fiber.thread;
    if (fiber.started) _longjmp(fiber.registers, 1);
    fiber.started = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_of(index);
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    setcontext(&context);
    abort();
}

// Not inlined, so that its own frame lies below all that the thread has on its stack.
__attribute__((noinline)) void switch_to(int index) {
    if (static_cast<char*>(__builtin_frame_address(0)) < stack_of(machine.fiber) + STACK_RESERVE) {
        fail("thread %d of " EMULATION_BLOCK ": more than %d bytes of stack", machine.thread, EMULATION_BLOCK_VALUES,
             int(STACK_BYTES - STACK_RESERVE));
    }
    if (index != machine.fiber && _setjmp(machine.fibers[machine.fiber].registers) == 0) resume(index);
}

// Let others run until someone has set this fiber's bit again.
void wait_at(const char* what) {
    machine.fibers[machine.fiber].at = what;
    machine.warp[machine.fiber / WARP].runnable &= ~(1u << machine.fiber % WARP);
    switch_to(next_fiber());
}

// ---- meeting --------------------------------------------------------------------------------------------------------

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

}  // namespace
}  // namespace emulation

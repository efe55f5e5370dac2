// What kernels report of data that decides addresses: the first fault of all blocks is kept, for the host to raise.
#pragma once

#include "machine.cuh"

// The number of the source that is compiled, by which the host finds its name.
#ifndef SOURCE_NUMBER
#define SOURCE_NUMBER 0u
#endif

// faults.py holds the same codes.
enum FaultCode : u32 {
    FAULT_NONE = 0,
    // A selected chunk that the plan does not have: value is its number, where the row that selects it.
    FAULT_CHUNK = 1,
};

// fault: uint32 (4,), {code, SOURCE_NUMBER, value, where}; null where nobody asks.
DEVICE void report(u32* fault, u32 code, int value, int where) {
    if (fault == nullptr || atomic_exchange_if(&fault[0], FAULT_NONE, code) != FAULT_NONE) return;
    fault[1] = SOURCE_NUMBER;
    fault[2] = u32(value);
    fault[3] = u32(where);
}

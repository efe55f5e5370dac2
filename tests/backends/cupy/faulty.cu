// A kernel that checks what it is given, for tests of faults.
#include "faults.cuh"

// y[i] = x[selected[i]], 0 where selected[i] is no place of the n; one thread to an i.
KERNEL(pick)(const float* x, const int* selected, float* y, int n, u32* fault) {
    const int row = block_x() * THREADS + thread_index();
    const int chosen = selected[row];
    const bool valid = chosen >= 0 && chosen < n;
    if (!valid && chosen != -1) report(fault, FAULT_CHUNK, chosen, row);
    y[row] = valid ? x[chosen] : 0.0f;
}

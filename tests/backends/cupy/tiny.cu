// Small kernels for tests of the host side.
// Constants: ELEMENT, the type of the arrays; SCALE, a whole number.
#include "machine.cuh"

// y[i] = SCALE * x[i] + a, for i < n; x has any stride.
KERNEL(scale)(const ELEMENT* x, ELEMENT* y, int n, i64 stride_x, float a) {
    int i = block_x() * THREADS + thread_index();
    if (i < n) y[i] = SCALE * x[i64(i) * stride_x] + a;
}

/* What the host passes of each type, as it arrives;
   KERNEL(not_one)(int x) in a comment is none. */
KERNEL(echo)(u64* words, int a, u32 b, u64 c, i64 d, float e, const float* nothing) {
    if (thread_index() != 0 || block_x() != 0 || nothing != nullptr) return;
    words[0] = u64(i64(a));
    words[1] = b;
    words[2] = c;
    words[3] = u64(d);
    words[4] = bits_of(e);
}

// out[block] = the sum of the block's part of x, by way of shared memory.
KERNEL(block_sums)(const int* x, int* out) {
    SHARED_MEMORY(memory);
    int* parts = (int*)memory;
    static_assert(SHARED_BYTES >= 4 * THREADS || SHARED_BYTES == 0);
    int block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
    parts[thread_index()] = x[block * THREADS + thread_index()];
    for (int half = THREADS / 2; half > 0; half /= 2) {
        sync_block();
        if (thread_index() < half) parts[thread_index()] += parts[thread_index() + half];
    }
    if (thread_index() == 0) out[block] = parts[0];
}

// Small kernels for test_emulation.py: each shows what an intrinsic does, or breaks a rule of the machine.
#include "machine.cuh"

// A function that C can call for a kernel: the grid, the threads, the shared bytes, the kernel's arguments.
#define UNPACK(...) __VA_ARGS__
#define RUNNER(name, parameters, arguments)                                                                          \
    extern "C" const char* run_##name(int _x, int _y, int _z, int _threads, int _shared, UNPACK parameters) {        \
        return emulation::run(_x, _y, _z, _threads, _shared, [=] { name arguments; });                               \
    }

// Where a thread is: seen[z][y][x][thread] = {thread, lane, warp, x, y, z, grid x, grid y}.
KERNEL(places)(int* seen, int threads) {
    int* mine = seen + (((block_z() * grid_y() + block_y()) * grid_x() + block_x()) * threads + thread_index()) * 8;
    const int values[8] = {thread_index(), lane_index(), warp_index(), block_x(),
                           block_y(),      block_z(),    grid_x(),     grid_y()};
    for (int i = 0; i < 8; ++i) mine[i] = values[i];
}
RUNNER(places, (int* seen, int threads), (seen, threads))

// One product per block, of fragments as the lanes hold them.
KERNEL(products)(const u32* a, const u32* b, float* c, int half) {
    const int at = block_x() * 32 + lane_index();
    u32 left[4], right[2];
    float sums[4];
    for (int i = 0; i < 4; ++i) left[i] = a[at * 4 + i];
    for (int i = 0; i < 2; ++i) right[i] = b[at * 2 + i];
    for (int i = 0; i < 4; ++i) sums[i] = c[at * 4 + i];
    if (half) {
        multiply_half(sums, left, right);
    } else {
        multiply_bfloat(sums, left, right);
    }
    for (int i = 0; i < 4; ++i) c[at * 4 + i] = sums[i];
}
RUNNER(products, (const u32* a, const u32* b, float* c, int half), (a, b, c, half))

// Four matrices, whose rows lie at `offsets` (bytes) of `memory`.
KERNEL(matrices)(const u16* memory, int size, const int* offsets, u32* out, int transposed) {
    SHARED_MEMORY(shared);
    for (int i = lane_index(); i < size; i += 32) reinterpret_cast<u16*>(shared)[i] = memory[i];
    sync_warp();
    u32 got[4];
    if (transposed) {
        load_matrices_transposed(got, shared + offsets[lane_index()]);
    } else {
        load_matrices(got, shared + offsets[lane_index()]);
    }
    for (int i = 0; i < 4; ++i) out[lane_index() * 4 + i] = got[i];
}
RUNNER(matrices, (const u16* memory, int size, const int* offsets, u32* out, int transposed),
       (memory, size, offsets, out, transposed))

// seen[8][32]: what each lane gets from the others.
KERNEL(exchanges)(const int* values, const int* sources, int mask, int distance, u32* seen) {
    const int lane = lane_index(), value = values[lane];
    seen[lane] = u32(shuffle(value, sources[lane]));
    seen[32 + lane] = bits_of(shuffle(float(value), sources[lane]));
    seen[64 + lane] = u32(shuffle_xor(value, mask));
    seen[96 + lane] = bits_of(shuffle_xor(float(value), mask));
    seen[128 + lane] = u32(shuffle_up(value, distance));
    seen[160 + lane] = warp_ballot(value > 0);
    seen[192 + lane] = warp_match(value);
    seen[224 + lane] = u32(warp_any(value > 5)) | u32(warp_any(value > 1000)) << 1;
}
RUNNER(exchanges, (const int* values, const int* sources, int mask, int distance, u32* seen),
       (values, sources, mask, distance, seen))

// Every thread copies two times 16 bytes, in two groups, and keeps what it sees of them: before any wait, after one for
// all but the latest, after one for all. `source` and `target` are off by as many bytes as said.
KERNEL(copies)(const unsigned char* source, u32* seen, int valid, int source_off, int target_off) {
    SHARED_MEMORY(shared);
    const int thread = thread_index();
    unsigned char* first = shared + thread * 32 + target_off;
    const auto look = [&](int when) {
        for (int i = 0; i < 8; ++i) seen[(when * THREADS + thread) * 8 + i] = reinterpret_cast<u32*>(first)[i];
    };
    copy_async(first, source + thread * 32 + source_off, valid);
    commit_copies();
    copy_async(first + 16, source + thread * 32 + 16 + source_off, valid);
    commit_copies();
    look(0);
    wait_copies<1>();
    look(1);
    wait_copies<0>();
    look(2);
}
RUNNER(copies, (const unsigned char* source, u32* seen, int valid, int source_off, int target_off),
       (source, seen, valid, source_off, target_off))

// What a thread writes the one before reads, and the other way round. Right only with all three `barriers` (bits).
KERNEL(rotate)(const float* x, float* y, int barriers) {
    SHARED_MEMORY(memory);
    float* shared = reinterpret_cast<float*>(memory);
    const int thread = thread_index(), threads = THREADS, row = block_x() * threads;
    shared[thread] = x[row + thread];
    if (barriers & 1) sync_block();
    const float got = shared[(thread + 1) % threads];
    if (barriers & 2) sync_block();
    shared[thread] = 2.0f * got;
    if (barriers & 4) sync_block();
    y[row + thread] = shared[(thread + threads - 1) % threads];
}
RUNNER(rotate, (const float* x, float* y, int barriers), (x, y, barriers))

// One thread of a block writes the sum of what its warps found.
KERNEL(sums)(const int* x, int* sum, int* any) {
    SHARED_MEMORY(memory);
    int* shared = reinterpret_cast<int*>(memory);
    int value = x[block_x() * THREADS + thread_index()];
    const bool seen = sync_block_any(value > 90);
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    if (lane_index() == 0) shared[thread_index() / 32] = value;
    const bool again = sync_block_any(false);
    if (thread_index() != 0) return;
    int total = 0;
    for (int i = 0; i < THREADS / 32; ++i) total += shared[i];
    sum[block_x()] = total;
    any[block_x()] = int(seen) + 2 * int(again);
}
RUNNER(sums, (const int* x, int* sum, int* any), (x, sum, any))

// Blocks add up; the first to come takes the place.
KERNEL(atomics)(int* count, float* sum, u32* place, int* before) {
    before[block_x() * THREADS + thread_index()] = atomic_add(count, 2);
    atomic_add(sum, 0.5f);
    atomic_exchange_if(place, 0, u32(block_x() * THREADS + thread_index()) + 1);
}
RUNNER(atomics, (int* count, float* sum, u32* place, int* before), (count, sum, place, before))

// The rules, and how they are broken.
KERNEL(astray)(int how, u32* out) {
    SHARED_MEMORY(shared);
    const int thread = thread_index(), lane = lane_index();
    if (block_x() != 1) return;
    switch (how) {
        case 0:  // Lanes at different intrinsics.
            if (lane < 16) {
                shuffle(lane, 0);
            } else {
                warp_ballot(true);
            }
            break;
        case 1:  // A lane that has returned.
            if (thread == 5) return;
            sync_warp();
            break;
        case 2:  // Lanes at a barrier of the block, which waits for the others.
            if (lane < 8) sync_block();
            warp_any(true);
            if (lane >= 8) sync_block();
            break;
        case 3:  // A warp that has returned, where others meet at a barrier.
            if (thread >= 32) return;
            sync_block();
            break;
        case 4:  // Barriers that are not the same.
            if (thread < 32) {
                sync_block();
            } else {
                sync_block_any(true);
            }
            break;
        case 5: shared[SHARED_BYTES + 8] = 1; break;
        case 6: shared[-100] = 1; break;
        case 7: {
            u32 got[4];
            load_matrices(got, shared + (lane == 3 ? 8 : 0));
            break;
        }
        case 8: {
            u32 got[4];
            load_matrices(got, lane == 3 ? static_cast<void*>(out) : shared);
            break;
        }
        case 9: copy_async(shared + SHARED_BYTES, out, true); break;
        case 10:
            if (lane % 2) warp_index();
            break;
        default:  // All is well: what shared memory holds at first.
            sync_block();
            out[thread] = reinterpret_cast<u32*>(shared)[thread];
            reinterpret_cast<u32*>(shared)[thread] = 0;
    }
}
RUNNER(astray, (int how, u32* out), (how, out))

// More local memory than a thread has.
KERNEL(deep)(u32* out) {
    volatile unsigned char much[200 * 1024];
    much[0] = much[sizeof much - 1] = 1;
    sync_warp();
    out[thread_index()] = much[0];
}
RUNNER(deep, (u32* out), (out))

// 16-bit numbers to float and back, one a thread.
KERNEL(values)(float* half, float* bfloat, u16* half_again, u16* bfloat_again) {
    const int i = block_x() * THREADS + thread_index();
    half[i] = half_value(u16(i));
    bfloat[i] = bfloat_value(u16(i));
    half_again[i] = half_bits(half[i]);
    bfloat_again[i] = bfloat_bits(bfloat[i]);
}
RUNNER(values, (float* half, float* bfloat, u16* half_again, u16* bfloat_again),
       (half, bfloat, half_again, bfloat_again))

KERNEL(roundings)(const float* x, int count, u16* half, u16* bfloat, u32* half_pairs, u32* bfloat_pairs) {
    const int i = block_x() * THREADS + thread_index();
    if (i >= count) return;
    const float other = x[count - 1 - i];
    half[i] = half_bits(x[i]);
    bfloat[i] = bfloat_bits(x[i]);
    half_pairs[i] = half_pair(x[i], other);
    bfloat_pairs[i] = bfloat_pair(x[i], other);
}
RUNNER(roundings, (const float* x, int count, u16* half, u16* bfloat, u32* half_pairs, u32* bfloat_pairs),
       (x, count, half, bfloat, half_pairs, bfloat_pairs))

// results[4][count]: functions of two floats, and integers[4][count] of their bits.
KERNEL(functions)(const float* x, const float* y, int count, float* results, u32* integers) {
    const int i = block_x() * THREADS + thread_index();
    if (i >= count) return;
    const u32 left = bits_of(x[i]), right = bits_of(y[i]);
    results[i] = exp2_fast(x[i]);
    results[count + i] = log2_of(x[i]);
    results[2 * count + i] = larger(x[i], y[i]);
    results[3 * count + i] = smaller(x[i], float_of(right));
    integers[i] = multiply_high(left, right);
    integers[count + i] = u32(count_bits(left));
    integers[2 * count + i] = u32(larger(int(left), int(right)));
    integers[3 * count + i] = u32(smaller(int(left), int(right)));
}
RUNNER(functions, (const float* x, const float* y, int count, float* results, u32* integers),
       (x, y, count, results, integers))

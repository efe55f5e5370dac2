// The machine that the kernels are written over, on a GPU: thin names for PTX of sm_80 and newer.
//
// Every instruction whose effect reaches beyond one thread has a name here and nowhere else, so that `emulation.hpp` can
// give the same names a meaning on a CPU. Fragment layouts are those of the PTX ISA, "Matrix fragments for mma.m16n8k16".
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE __device__ __forceinline__
// THREADS and BLOCKS_PER_SM are constants of the compilation: the threads of a block, and how many blocks the registers
// of a multiprocessor must hold.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) name
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

// ---- where a thread is -----------------------------------------------------------------------------------------------
DEVICE int thread_index() { return int(threadIdx.x); }
DEVICE int lane_index() { return int(threadIdx.x % 32); }
// The same for all lanes of a warp, and known to be: what depends on it is computed once for the warp.
DEVICE int warp_index() { return __shfl_sync(0xffffffffu, int(threadIdx.x / 32), 0); }
DEVICE int block_x() { return int(blockIdx.x); }
DEVICE int block_y() { return int(blockIdx.y); }
DEVICE int block_z() { return int(blockIdx.z); }
DEVICE int grid_x() { return int(gridDim.x); }
DEVICE int grid_y() { return int(gridDim.y); }
// The same number, of which the compiler knows no more: what follows from it is computed where it is needed, and no
// register keeps it meanwhile.
DEVICE int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// ---- meeting the other threads of a block or a warp --------------------------------------------------------------------
DEVICE void sync_block() { __syncthreads(); }
DEVICE bool sync_block_any(bool here) { return __syncthreads_or(here) != 0; }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE bool warp_any(bool here) { return __any_sync(0xffffffffu, here) != 0; }
DEVICE u32 warp_ballot(bool here) { return __ballot_sync(0xffffffffu, here); }
// The lanes that hold the same value.
DEVICE u32 warp_match(int value) { return __match_any_sync(0xffffffffu, value); }
DEVICE int shuffle(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// The value of the lane `distance` below; lanes without one get their own.
DEVICE int shuffle_up(int value, int distance) { return __shfl_up_sync(0xffffffffu, value, distance); }

// ---- asynchronous copies from global to shared memory ------------------------------------------------------------------
DEVICE u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }
// Copy 16 bytes, both addresses multiples of 16; zeros where not `valid`, and then nothing is read.
DEVICE void copy_async(void* target, const void* source, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// Close the group of the copies that this thread has issued since the last one.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Wait until at most PENDING of this thread's latest groups are under way; others see the data after a barrier.
template <int PENDING>
DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// ---- matrices of 8 x 8 16-bit numbers ----------------------------------------------------------------------------------
// Load four matrices; `row` points to 8 numbers, row lane % 8 of matrix lane / 8, at a multiple of 16 bytes. Of matrix i
// a lane gets in out[i] the elements 2 * (lane % 4) and the next of row lane / 4.
DEVICE void load_matrices(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of the transposed matrices: the elements of column lane / 4 in rows 2 * (lane % 4) and the next.
DEVICE void load_matrices_transposed(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// c += a b for a (16, 16), b (16, 8) and c (16, 8), with g = lane / 4 and t = lane % 4:
//   a[0], a[1]: rows g and g + 8 at columns 2t, 2t + 1; a[2], a[3]: the same at columns 2t + 8, 2t + 9;
//   b[0], b[1]: column g at rows 2t, 2t + 1 and 2t + 8, 2t + 9;  c[0], c[1]: row g at columns 2t, 2t + 1; c[2], c[3]: row g + 8.
DEVICE void multiply_half(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void multiply_bfloat(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- numbers ---------------------------------------------------------------------------------------------------------------
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
// To the nearest, ties to even; what lies beyond the largest number becomes infinite.
DEVICE u16 half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE float half_value(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE u16 bfloat_bits(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE float bfloat_value(u16 bits) { return float_of(u32(bits) << 16); }
// Two numbers in a register, the first in the low half.
DEVICE u32 half_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u32 bfloat_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
// 2 ** x to two units in the last place; results below the least normal number become 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_of(float x) { return log2f(x); }
// The larger, the smaller; a NaN gives way to a number.
DEVICE float larger(float x, float y) { return fmaxf(x, y); }
DEVICE float smaller(float x, float y) { return fminf(x, y); }
DEVICE int larger(int x, int y) { return max(x, y); }
DEVICE int smaller(int x, int y) { return min(x, y); }
DEVICE u32 multiply_high(u32 x, u32 y) { return __umulhi(x, y); }
DEVICE int count_bits(u32 x) { return __popc(x); }

// ---- memory that blocks share ------------------------------------------------------------------------------------------
// Each returns what was there before.
DEVICE int atomic_add(int* target, int value) { return atomicAdd(target, value); }
DEVICE float atomic_add(float* target, float value) { return atomicAdd(target, value); }
DEVICE u32 atomic_exchange_if(u32* target, u32 expected, u32 value) { return atomicCAS(target, expected, value); }

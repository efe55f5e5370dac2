// The numbers of `intrinsics.cuh` on a CPU: bits, 16-bit types, and the functions of one thread alone.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE inline

DEVICE u32 bits_of(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
DEVICE float float_of(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// A NaN becomes the one NaN that a GPU makes; its payload is lost there too.
DEVICE u16 half_bits(float x) {
    const u32 magnitude = bits_of(x) & 0x7fffffffu;
    const u32 sign = bits_of(x) >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return 0x7fff;
    // 65520 lies midway between the largest number and the next, whose significand would be even.
    if (magnitude >= bits_of(65520.0f)) return u16(sign | 0x7c00u);
    // Below 2^-14 the unit in the last place is 2^-24, as it is of floats at 0.5: the sum rounds as it should.
    if (magnitude < 0x38800000u) return u16(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    return u16(sign | (magnitude - 0x38000000u + 0x0fffu + (magnitude >> 13 & 1u)) >> 13);
}
// As a float the bits are 2^112 too small, subnormal ones too; infinities and NaN must get the highest exponent.
DEVICE float half_value(u16 bits) {
    const u32 magnitude = (bits & 0x7fffu) << 13;
    const u32 exponent = magnitude >= 0x0f800000u ? 0x7f800000u : 0;
    return float_of(bits_of(float_of(magnitude) * 0x1p112f) | exponent | (bits & 0x8000u) << 16);
}
DEVICE u16 bfloat_bits(float x) {
    const u32 bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return u16((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
DEVICE float bfloat_value(u16 bits) { return float_of(u32(bits) << 16); }
DEVICE u32 half_pair(float low, float high) { return half_bits(low) | u32(half_bits(high)) << 16; }
DEVICE u32 bfloat_pair(float low, float high) { return bfloat_bits(low) | u32(bfloat_bits(high)) << 16; }

DEVICE float exp2_fast(float x) {
    const float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE float log2_of(float x) { return __builtin_log2f(x); }
DEVICE float larger(float x, float y) { return x > y || y != y ? x : y; }
DEVICE float smaller(float x, float y) { return x < y || y != y ? x : y; }
DEVICE int larger(int x, int y) { return x > y ? x : y; }
DEVICE int smaller(int x, int y) { return x < y ? x : y; }
DEVICE u32 multiply_high(u32 x, u32 y) { return u32(u64(x) * y >> 32); }
DEVICE int count_bits(u32 x) { return __builtin_popcount(x); }

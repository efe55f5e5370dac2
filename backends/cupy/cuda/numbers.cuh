// Element types of the arrays, and what is asked of numbers.
#pragma once

#include "machine.cuh"

struct half_t {
    u16 bits;
};
struct bfloat_t {
    u16 bits;
};

template <class T>
struct Element;

template <>
struct Element<half_t> {
    DEVICE static float value(half_t x) { return half_value(x.bits); }
    DEVICE static half_t from(float x) { return half_t{half_bits(x)}; }
};
template <>
struct Element<bfloat_t> {
    DEVICE static float value(bfloat_t x) { return bfloat_value(x.bits); }
    DEVICE static bfloat_t from(float x) { return bfloat_t{bfloat_bits(x)}; }
};
template <>
struct Element<float> {
    DEVICE static float value(float x) { return x; }
    DEVICE static float from(float x) { return x; }
};

// By its bits: no header that names it is at hand.
DEVICE float infinity() { return float_of(0x7f800000u); }
// x - x is 0, and NaN for what is infinite or NaN.
DEVICE bool finite(float x) { return x - x == 0.0f; }
// Later than every position.
constexpr int FAR = 0x7fffffff;

DEVICE int ceil_div(int x, int y) { return (x + y - 1) / y; }

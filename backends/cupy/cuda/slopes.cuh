// The softmax of the backward, recomputed from the merged lse, and its derivative.
//
//   P = 2^lift softmax = 2^(logit - shift),  dS = P (dP - delta),  dP = d_out V^T,
//
// with shift and delta of rows.cu. P is at most 2^lift. `lift` is 0 but for float16, whose smallest number is no
// smaller than many a weight: there P is larger by 2^lift, and the results are divided by it. dS has no such bounds,
// and float16 would lose the large as well as the small: its products take bfloat16 pieces.
//
// A product of matrices counts every pair: 0 * NaN is NaN. So what is not finite must be no operand where some pairs do
// not count. `shift` is NaN for a row whose q is not finite, or that sees a NaN key, and `delta` for one whose d_out is
// not finite: P and dS of what the row sees are NaN by that alone, and its q and d_out are loaded as 0.
//
// Source of the recomputation: FlashAttention, arXiv 2205.14135.
#pragma once

#include "fragments.cuh"
#include "vectors.cuh"

// ---- products with dS -----------------------------------------------------------------------------------------------
// dS in two pieces, 16 bits, with float16 numbers, which two pieces hold whole. What both leave out is below 2^-15.
struct HalfSlopeProduct : SplitProduct<2, 2> {
    template <class Rows>
    DEVICE static void load_b_transposed(B& first, B& second, const Rows& tile, int k, int n) {
        const int lane = lane_index();
        u32 r[4];
        load_matrices_transposed(r, tile.at(k, n, lane % 16, lane / 16 * 8));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 pieces[2];
            cut_pair(pieces, half_value(u16(r[i])), half_value(u16(r[i] >> 16)));
            B& b = i < 2 ? first : second;
            b.r[0][i % 2] = pieces[0];
            b.r[1][i % 2] = pieces[1];
        }
    }

    DEVICE static void multiply(float (&c)[4], const A& a, const B& b) {
        multiply_bfloat(c, a.r[1], b.r[0]);
        multiply_bfloat(c, a.r[0], b.r[1]);
        multiply_bfloat(c, a.r[0], b.r[0]);
    }
};

// The product that logits, P and dP take, and that of dS.
template <class T, int PIECES>
struct GradProducts {
    using Pair = typename ProductFor<T, PIECES>::Type;
    using Slope = Pair;
};
template <int PIECES>
struct GradProducts<half_t, PIECES> {
    using Pair = HalfProduct;
    using Slope = Paced<HalfSlopeProduct, 16>;
};

// ---- weights and slopes ---------------------------------------------------------------------------------------------
// Turn a logit into P and dP into dS, both 0 for a pair that does not count, or with a shift of infinity.
DEVICE void slope(float& logit, float& d_weight, bool counts, float shift, float delta, float scale, float lift) {
    // The forward may have summed in another order: where logits are huge, rounding alone could make P overflow.
    const float exponent = logit * scale - shift;
    // A logit that does not count may be infinite, or NaN.
    const float weight = counts ? exp2_fast(exponent > lift ? lift : exponent) : 0.0f;
    logit = weight;
    // A pair without weight has no slope, be dP finite or not.
    d_weight = weight == 0.0f ? 0.0f : weight * (d_weight - delta);
}

// ---- keys that are not finite ---------------------------------------------------------------------------------------
template <class T>
struct Largest;
template <>
struct Largest<half_t> {
    static constexpr float VALUE = 65504.0f;
};
template <>
struct Largest<bfloat_t> {
    static constexpr float VALUE = 3.3895313892515355e38f;
};
template <>
struct Largest<float> {
    static constexpr float VALUE = 3.4028234663852886e38f;
};

// Replace NaN by 0 and infinities by the largest number, in COUNT rows of a tile from row `first` on. Called by
// THREADS_ threads, of which this is `thread`. A row that sees a NaN key has a NaN `shift`, and one that sees an
// infinite key either that or a weight of 0 for it.
template <int COUNT, int THREADS_, class T, int ROWS, int COLUMNS>
DEVICE void make_finite(const Tile<T, ROWS, COLUMNS>& tile, int first, int thread) {
    constexpr int VECTOR = 16 / int(sizeof(T)), VECTORS = COLUMNS / VECTOR;
    for (int place = thread; place < COUNT * VECTORS; place += THREADS_) {
        T* numbers = tile.at(first + place / VECTORS, place % VECTORS * VECTOR);
        const Vector vector = *reinterpret_cast<const Vector*>(numbers);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum += item_of(vector, i, numbers) - item_of(vector, i, numbers);
        if (sum == 0.0f) continue;
        for (int i = 0; i < VECTOR; ++i) {
            const float x = Element<T>::value(numbers[i]);
            const float number = x == x ? x : 0.0f;
            numbers[i] = Element<T>::from(larger(smaller(number, Largest<T>::VALUE), -Largest<T>::VALUE));
        }
    }
}

// Partial results of a block's rows on their way to global memory.
#pragma once

#include "softmax.cuh"
#include "vectors.cuh"

// Write a warp's rows, normalised, each to a place of its own: out (places, width) and lse (places,), base 2. place_of(r) is
// the place of the warp's row r, negative where it has none. The rows pass through the warp's part of the query tile, so
// that they leave as whole vectors. `width`: v_head_dim, rounded up to whole vectors.
template <class S, class PlaceOf>
DEVICE void write_partials(Softmax<S>& state, const typename S::QueryTile& rows, typename S::T* out, float* lse, int width,
                           PlaceOf place_of) {
    using Number = Element<typename S::T>;
    constexpr int VECTOR = 16 / int(sizeof(typename S::T)), VECTORS = S::VALUE / VECTOR;
    const int own = warp_index() * S::OWN_ROWS, g = lane_index() / 4, t = lane_index() % 4;
    sync_warp();  // no lane reads queries any more
#pragma unroll
    for (int m = 0; m < S::ROW_TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float log_sum = state.finish(m, h);
            const int r = 16 * m + 8 * h + g;
            const i64 place = place_of(r);
            if (t == 0 && place >= 0) lse[place] = log_sum;
#pragma unroll
            for (int n = 0; n < S::VALUE_COLUMNS; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    *rows.at(own + r, 8 * n + 2 * t + e) = Number::from(state.sums[m][n][2 * h + e]);
        }
    sync_warp();
    for (int number = lane_index(); number < S::OWN_ROWS * VECTORS; number += 32) {
        const int r = number / VECTORS, column = number % VECTORS * VECTOR;
        const i64 place = place_of(r);
        if (place >= 0 && column < width)
            *reinterpret_cast<Vector*>(out + place * width + column) =
                *reinterpret_cast<const Vector*>(rows.at(own + r, column));
    }
}

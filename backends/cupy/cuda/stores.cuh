// Sums of a warp's rows on their way to global memory.
#pragma once

#include "fragments.cuh"
#include "vectors.cuh"

// Where rows go: as `Rows` says where they come from.
template <class T>
struct Target {
    T* base;
    i64 stride;
    i64 column_stride;
    int width;
    bool aligned;
};

// Two neighbouring float32 numbers.
struct alignas(8) Pair {
    float first, second;
};

// Write the accumulators of a warp as they are: float32, row r at target + r * stride; 0 in rows that do not count.
template <int ROW_TILES, int COLUMN_TILES, class Counts>
DEVICE void write_sums(float* target, int stride, const float (&sums)[ROW_TILES][COLUMN_TILES][4], Counts counts) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = 16 * m + 8 * h + g;
            const bool kept = counts(r);
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n)
                *reinterpret_cast<Pair*>(target + i64(r) * stride + 8 * n + 2 * t) =
                    kept ? Pair{sums[m][n][2 * h], sums[m][n][2 * h + 1]} : Pair{0.0f, 0.0f};
        }
}

// Put the accumulators of a warp, times factor, into its rows of a tile, from row `first` and `column` on; 0 in rows
// that do not count.
template <class T, int ROWS, int COLUMNS, int ROW_TILES, int COLUMN_TILES, class Counts>
DEVICE void stage_sums(const Tile<T, ROWS, COLUMNS>& tile, int first, int column,
                       const float (&sums)[ROW_TILES][COLUMN_TILES][4], float factor, Counts counts) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = first + 16 * m + 8 * h + g;
            const bool kept = counts(r);
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    *tile.at(r, column + 8 * n + 2 * t + e) =
                        Element<T>::from(kept ? sums[m][n][2 * h + e] * factor : 0.0f);
        }
}

// Store COUNT rows of a warp, from row `first` on, and WIDTH columns of them from `column` on; row r goes to row
// target(r), nowhere where that is negative.
template <int COUNT, int WIDTH, class T, int ROWS, int COLUMNS, class TargetOf>
DEVICE void store_own_rows(const Target<T>& to, const Tile<T, ROWS, COLUMNS>& tile, int first, int column,
                           TargetOf target_of) {
    constexpr int VECTOR = 16 / int(sizeof(T)), VECTORS = WIDTH / VECTOR;
    for (int place = lane_index(); place < COUNT * VECTORS; place += 32) {
        const int r = first + place / VECTORS, at = column + place % VECTORS * VECTOR;
        const int row = target_of(r);
        if (row < 0 || at >= to.width) continue;
        T* target = to.base + i64(row) * to.stride;
        if (to.aligned) {
            *reinterpret_cast<Vector*>(target + at) = *reinterpret_cast<const Vector*>(tile.at(r, at));
        } else {
            for (int e = 0; e < VECTOR && at + e < to.width; ++e)
                target[i64(at + e) * to.column_stride] = *tile.at(r, at + e);
        }
    }
}

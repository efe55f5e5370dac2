// Tiles in shared memory, and how rows come into them from global memory.
#pragma once

#include "numbers.cuh"

// ROWS rows of COLUMNS elements. Rows are padded by 16 bytes, so that eight of them one above the other start in different
// banks: matrices load without conflicts. `shared.py` holds the same formula.
template <class T, int ROWS, int COLUMNS>
struct Tile {
    static constexpr int STRIDE = COLUMNS + 16 / int(sizeof(T));
    static constexpr int BYTES = ROWS * STRIDE * int(sizeof(T));
    T* data;

    DEVICE T* at(int row, int column) const { return data + row * STRIDE + column; }
    // The same place, reached from the lane's own: what is known early is then an offset in the instruction, for which no
    // register holds an address.
    DEVICE T* at(int row, int column, int lane_row, int lane_column) const {
        return at(lane_row, lane_column) + (row * STRIDE + column);
    }
};

// An array (..., tokens, ..., width) at one batch row and head: rows of global memory.
template <class T>
struct Rows {
    const T* base;
    i64 stride;         // from row to row, in elements
    i64 column_stride;  // from column to column
    int width;          // head_dim: columns beyond it count as 0
    bool aligned;       // columns are dense, and rows are whole vectors of 16 bytes at multiples of 16 bytes
};

// Start to copy COUNT rows into a tile from its row `first` on: row r of it from row `row_of(r)`, zeros where that is
// negative and beyond the width. The caller commits. Where rows are not aligned they are copied at once, element by
// element. Called by THREADS_ threads, of which this is `thread`.
template <int COUNT, int THREADS_, class T, int ROWS, int COLUMNS, class RowOf>
DEVICE void load_rows_by(const Tile<T, ROWS, COLUMNS>& tile, int first, int thread, const Rows<T>& from, RowOf row_of) {
    constexpr int VECTOR = 16 / int(sizeof(T));
    constexpr int VECTORS = COLUMNS / VECTOR;
#pragma unroll 4
    for (int place = thread; place < COUNT * VECTORS; place += THREADS_) {
        const int r = first + place / VECTORS, column = place % VECTORS * VECTOR;
        const int row = row_of(r);
        const T* source = from.base + i64(row < 0 ? 0 : row) * from.stride;
        if (from.aligned) {
            const bool valid = row >= 0 && column < from.width;
            copy_async(tile.at(r, column), valid ? source + column : from.base, valid);
        } else {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const bool valid = row >= 0 && column + e < from.width;
                *tile.at(r, column + e) = valid ? source[i64(column + e) * from.column_stride] : T{};
            }
        }
    }
}

// All rows of a tile, by all threads of the block.
template <class T, int ROWS, int COLUMNS, class RowOf>
DEVICE void load_rows(const Tile<T, ROWS, COLUMNS>& tile, const Rows<T>& from, RowOf row_of) {
    load_rows_by<ROWS, THREADS>(tile, 0, opaque(thread_index()), from, row_of);
}

// COUNT rows from row `first` on, by one warp, which alone reads them. All its lanes call it.
template <int COUNT, class T, int ROWS, int COLUMNS, class RowOf>
DEVICE void load_own_rows(const Tile<T, ROWS, COLUMNS>& tile, int first, const Rows<T>& from, RowOf row_of) {
    load_rows_by<COUNT, 32>(tile, first, opaque(lane_index()), from, row_of);
}

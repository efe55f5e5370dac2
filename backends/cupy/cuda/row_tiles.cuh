// The tiles of query rows that a tile of keys meets, one after the other, and what is kept of a tile in shared memory.
#pragma once

#include "coverage.cuh"

// Where rows come from: anchored ones that see some pairs of the tile of keys, those that see all of it, and those that
// chose its chunk.
constexpr int SOME = 0, WHOLE = 1, ROUTED = 2;

// Rows, or places in the list of a chunk, start ... stop - 1, of a query head of the group; none where start = stop.
struct RowTile {
    int start, stop, member, kind, meeting;
};

// Where rows are listed, see planning/key_tiles.py.
struct RowRanges {
    const int* row_lo;
    const int* row_full;
    const int* row_hi;
    int ptr_stride;  // from head to head
    int group;
};

// For each query head of the group the anchored rows, then the routed ones, in tiles of ROWS. One thread moves it on,
// in shared memory: no register holds it while tiles are multiplied.
template <int ROWS>
struct RowTiles {
    const int* ptr;         // of the chunk: entries before it, for the first head of the group
    int meeting, meetings;  // the first meeting, of so many
    int skip, left;         // tiles to leave out, and to take after them
    int member, step;       // of the group, and two steps to each meeting before the last one
    int start, stop;        // what is left of the range at hand

    DEVICE RowTile next(const RowRanges& ranges) {
        while (left > 0 && start >= stop) open(ranges);
        if (left <= 0) return RowTile{0, 0, 0, 0, 0};
        const int first = start, kind = step == 2 * meetings ? ROUTED : step % 2;
        start += ROWS;
        --left;
        return RowTile{first, smaller(first + ROWS, stop), member, kind, meeting + step / 2};
    }

   private:
    DEVICE void open(const RowRanges& ranges) {
        if (++step > 2 * meetings) {
            step = 0;
            ++member;
        }
        if (member >= ranges.group) {
            left = 0;
            return;
        }
        const int number = meeting + step / 2;
        if (step == 2 * meetings) {
            start = ptr[i64(member) * ranges.ptr_stride];
            stop = ptr[i64(member) * ranges.ptr_stride + 1];
        } else {
            start = step % 2 == SOME ? ranges.row_lo[number] : ranges.row_full[number];
            stop = step % 2 == SOME ? ranges.row_full[number] : ranges.row_hi[number];
        }
        const int skipped = smaller(skip, ceil_div(stop - start, ROWS));
        skip -= skipped;
        start += skipped * ROWS;
    }
};

// A row on its way into a list: its number, -1 for none, and its constants.
struct Row {
    int number;
    float shift, delta;
};
// Some pairs may not count; some row's d_out is not finite.
constexpr int MASKED = 1, SPOILED = 2;

// A tile of rows, in shared memory.
template <int ROWS>
struct alignas(16) RowList {
    float constants[2 * ROWS];  // shift and delta, row by row; infinity and 0 for none
    int row[ROWS];              // -1 for none
    RowTile tile;
    int flags[2];  // of the rows of each warp that wrote them
    int unused;

    DEVICE bool any() const { return tile.start < tile.stop; }
    DEVICE int all_flags() const { return ROWS > 32 ? flags[0] | flags[1] : flags[0]; }
    DEVICE float shift(int r) const { return constants[2 * r]; }
    DEVICE float delta(int r) const { return constants[2 * r + 1]; }
    // The row whose q is loaded, and that whose d_out is: -1 where NaN takes its place.
    DEVICE int query_row(int r) const { return shift(r) == shift(r) ? row[r] : -1; }
    DEVICE int grad_row(int r) const { return delta(r) == delta(r) ? row[r] : -1; }
    DEVICE bool spoiled(int r) const { return delta(r) != delta(r); }

    // Called by all threads of the block; thread r brings row r, and whether it asks for a mask.
    DEVICE void write(const Row& one, bool masked) {
        const int r = thread_index(), warp = warp_index();
        if (warp * 32 >= ROWS) return;
        const int found = (warp_any(masked) ? MASKED : 0) | (warp_any(one.delta != one.delta) ? SPOILED : 0);
        if (r % 32 == 0) flags[warp] = found;
        if (r >= ROWS) return;
        constants[2 * r] = one.shift;
        constants[2 * r + 1] = one.delta;
        row[r] = one.number;
    }
};

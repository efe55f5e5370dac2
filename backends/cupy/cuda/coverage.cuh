// Which keys of a chosen chunk a row's anchors hold already: they count once, as anchors.
#pragma once

#include "numbers.cuh"

// The anchors of rows, see planning/geometry.py, `Runs`.
struct Anchors {
    const int* run_of_row;
    const int* ptr;  // ranges ptr[run] ... ptr[run + 1] - 1, disjoint and ascending
    const int* lo;
    const int* hi;
    int q_start;  // position of row 0
    int reach;    // half-width of the token window, -1 for none

    // Whether the row's anchors hold any of the positions first ... end - 1.
    DEVICE bool meet(int row, int first, int end) const {
        const int run = run_of_row[row], position = row + q_start;
        if (reach >= 0 && position - reach < end && position + reach >= first) return true;
        for (int range = ptr[run]; range < ptr[run + 1]; ++range)
            if (lo[range] < end && hi[range] > first) return true;
        return false;
    }

    DEVICE bool hold(int row, int key) const { return meet(row, key, key + 1); }
};

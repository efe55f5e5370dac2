// Which chunks a routing unit may take: those that any of its valid rows may.
#pragma once

#include "units.cuh"

// run_lo, run_hi: int32 (runs,), rows; bits, first, last: see `Candidates` of candidates.py, of this batch row;
// near_first: int32 (runs,). words, near: widths of bits, and of first and last. reach: half the token window.
struct CandidateTables {
    const int* run_lo;
    const int* run_hi;
    const int* bits;
    const int* first;
    const int* last;
    const int* near_first;
    int words;
    int near;
    int reach;
    int q_start;

    // Call visit(run, lo, hi) for the runs that hold valid rows of the unit, with those rows, until it returns true;
    // return whether it did.
    template <class Visit>
    DEVICE bool any_run(const Unit& unit, Visit visit) const {
        if (unit.runs == 1) return unit.valid() && visit(unit.run, unit.row, unit.row_hi);
        for (int run = unit.run; run < unit.run + unit.runs; ++run) {
            const int lo = larger(run_lo[run], unit.row), hi = smaller(run_hi[run], unit.row_hi);
            if (lo < hi && visit(run, lo, hi)) return true;
        }
        return false;
    }

    // Bit i: whether chunk word * 32 + i is a candidate, token windows apart.
    DEVICE u32 word_of(const Unit& unit, int word) const {
        u32 found = 0;
        any_run(unit, [&](int run, int, int) {
            found |= u32(bits[i64(run) * words + word]);
            return false;
        });
        return found;
    }

    // Whether a chunk is a candidate. A window covers what is left of it where it holds the first and the last key
    // left: of all rows of a run together the last row's reach down and the first row's reach up decide, for the others
    // hold less.
    DEVICE bool takes(const Unit& unit, int chunk) const {
        return any_run(unit, [&](int run, int lo, int hi) {
            if ((u32(bits[i64(run) * words + chunk / 32]) >> (chunk % 32) & 1u) == 0) return false;
            const int place = near > 0 ? chunk - near_first[run] : -1;
            if (place < 0 || place >= near) return true;
            const i64 entry = i64(run) * near + place;
            return first[entry] < hi - 1 + q_start - reach || last[entry] > lo + q_start + reach;
        });
    }
};

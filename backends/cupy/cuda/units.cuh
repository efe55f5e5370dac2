// Routing units: single query rows, or the present rows of a block. See `geometry.Units`.
#pragma once

#include "machine.cuh"

// Tables of the units and of the runs they start in; `run_chunk` holds the chunk that a run lies in.
struct UnitTables {
    const int* unit_row;
    const int* unit_rows;
    const int* unit_run;
    const int* unit_runs;
    const int* run_chunk;
    const int* stops;  // of this batch row
    int units;
    int q_start;
};

// A unit: its first row, how many rows it has, where the valid ones end, its first run and how many runs it touches.
struct Unit {
    int row;
    int count;
    int row_hi;
    int run;
    int runs;

    DEVICE bool valid() const { return row < row_hi; }
};

// Padding ends a segment, so the valid rows of a unit end where those of its chunk do. No rows beyond the last unit.
DEVICE Unit unit_at(const UnitTables& tables, int number) {
    if (number >= tables.units) return Unit{0, 0, 0, 0, 0};
    const int row = tables.unit_row[number], count = tables.unit_rows[number];
    const int run = tables.unit_run[number];
    const int stop = tables.stops[tables.run_chunk[run]] - tables.q_start;
    return Unit{row, count, smaller(row + count, stop), run, tables.unit_runs[number]};
}

"""Which keys of a chosen chunk a row's anchors hold already: they count once, as anchors."""

from __future__ import annotations

import triton
import triton.language as tl

#: Beyond every position.
FAR = tl.constexpr(2**31 - 1)


@triton.jit
def overlap(rows, valid, lo, hi, run_of_row, anchor_ptr, anchor_lo, anchor_hi, most_ranges):
    """Return (first, end): per row, its static anchor ranges that meet positions lo ... hi - 1.

    Args:
        rows: (M,) rows of the query axis; those not `valid` have no ranges.
        lo, hi: scalars, the chunk's keys.
        run_of_row, anchor_ptr, anchor_lo, anchor_hi: see `geometry.Runs`.
        most_ranges: most ranges of a run.
    """
    run = tl.load(run_of_row + rows, mask=valid, other=0)
    begin = tl.load(anchor_ptr + run, mask=valid, other=0)
    stop = tl.load(anchor_ptr + run + 1, mask=valid, other=0)
    first, end = begin, begin
    for number in range(most_ranges):
        own = begin + number < stop
        first += (tl.load(anchor_hi + begin + number, mask=own, other=FAR) <= lo).to(tl.int32)
        end += (tl.load(anchor_lo + begin + number, mask=own, other=FAR) < hi).to(tl.int32)
    return first, end


@triton.jit
def reaches(positions, valid, reach, lo, hi):
    """Return 1 where some row's token window meets positions lo ... hi - 1, else 0; never for a negative `reach`."""
    meets = valid & (reach >= 0) & (positions - reach < hi) & (positions + reach >= lo)
    return tl.max(meets.to(tl.int32), 0)


@triton.jit
def uncovered(keys, positions, reach, first, end, most, anchor_lo, anchor_hi):
    """Return (M, N): key positions that neither the static ranges first ... end - 1 nor the token window hold.

    Args:
        keys: (N,) positions.
        positions: (M,) of the rows.
        reach: half-width of the token window, -1 for none.
        first, end: (M,) as `overlap` returns them.
        most: largest end - first.
    """
    away = tl.abs(positions[:, None] - keys[None, :]) > reach
    for number in range(most):
        own = first + number < end
        lo = tl.load(anchor_lo + first + number, mask=own, other=FAR)
        hi = tl.load(anchor_hi + first + number, mask=own, other=0)
        away = away & ((keys[None, :] < lo[:, None]) | (keys[None, :] >= hi[:, None]))
    return away

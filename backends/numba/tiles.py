"""Logits of a strip of queries against a range of keys, and what masks them."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, multiply


@njit(nogil=True)
def strip_logits(product, logits, strip, rows, panels, depth, lanes, starts, groups, chunk, lo, hi):  # type: ignore[no-untyped-def]
    """Write logits[r, lead + (j - lo)] = <strip[r], key j> for lo <= j < hi, and return lead.

    `panels` is the address of one head's panels, `chunk` the chunk of key lo. The range may run over several chunks.
    A range that starts inside a panel is computed from the panel's start: the first `lead` columns are of other keys.
    What follows the last key up to the end of its panel is of no key.
    """
    item = logits.itemsize
    pair = 2 * lanes
    lead = (lo - starts[chunk]) % pair
    first = (lo - starts[chunk]) // pair * 2
    column = 0
    while lo < hi:
        stop = min(hi, starts[chunk + 1])
        last = -(-(stop - starts[chunk]) // lanes)
        in_chunk = groups[chunk + 1] - groups[chunk]
        done = lo - starts[chunk] - first * lanes
        for group in range(first, last, 2):
            vectors = 2 if group + 1 < in_chunk else 1
            panel = panels + (groups[chunk] + group) * lanes * depth * item
            place = logits.ctypes.data + (column + (group - first) * lanes) * item
            multiply(
                product,
                rows,
                vectors,
                strip.ctypes.data,
                panel,
                vectors * lanes * item,
                place,
                LOGIT_ROW * item,
                depth,
                0,
            )
        column += done + stop - lo
        lo = stop
        chunk += 1
        first = 0
    return lead


@njit(nogil=True)
def load_strip(strip, source, ids, first, rows):  # type: ignore[no-untyped-def]
    """Copy rows `ids[first : first + rows]` of `source` (rows, width) to the strip buffer."""
    for r in range(rows):
        strip[r * ROW : r * ROW + source.shape[1]] = source[ids[first + r]]


@njit(nogil=True)
def mask_range(logits, r, lead, lo, hi, keep_lo, keep_hi):  # type: ignore[no-untyped-def]
    """Set the logits of row r to -inf but for the keys keep_lo ... keep_hi - 1 of the range lo ... hi - 1."""
    base = r * LOGIT_ROW + lead - lo
    for j in range(lo, min(max(keep_lo, lo), hi)):
        logits[base + j] = -np.inf
    for j in range(max(min(keep_hi, hi), lo), hi):
        logits[base + j] = -np.inf


@njit(nogil=True)
def mask_anchors(logits, r, lead, lo, hi, position, run, anchors, reach):  # type: ignore[no-untyped-def]
    """Set the logits of row r to -inf for the keys of the range that the query's anchors hold already."""
    ptr, anchor_lo, anchor_hi = anchors
    base = r * LOGIT_ROW + lead - lo
    for at in range(ptr[run], ptr[run + 1]):
        for j in range(max(lo, anchor_lo[at]), min(hi, anchor_hi[at])):
            logits[base + j] = -np.inf
    if reach >= 0:
        for j in range(max(lo, position - reach), min(hi, position + reach + 1)):
            logits[base + j] = -np.inf


@njit(nogil=True)
def non_finite_rows(values, lo, hi):  # type: ignore[no-untyped-def]
    """Return which of the rows lo ... hi - 1 hold a NaN or an infinity."""
    found = np.empty(hi - lo, np.int64)
    count = 0
    for j in range(lo, hi):
        # 0 * x summed is 0 for finite x and NaN else, without a branch for each element.
        check = values.dtype.type(0)
        for column in range(values.shape[1]):
            check += values[j, column] * values.dtype.type(0)
        if check != 0:
            found[count] = j
            count += 1
    return found[:count]

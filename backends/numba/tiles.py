"""Logits of a strip of queries against a range of keys, and what masks them."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, VECTOR, multiply, row_copy
from sparsemoc.backends.numba.structs import BAND, EVERY, NO_ANCHOR


@njit(nogil=True)
def strip_logits(logits, strip, rows, panels, starts, chunk, lo, hi):  # type: ignore[no-untyped-def]
    """Write logits[r, lead + (j - lo)] = <strip[r], key j> for lo <= j < hi, and return lead.

    `chunk` is the chunk of key lo; the range may run over several chunks. A range that starts inside a panel is
    computed from the panel's start: the first `lead` columns are of other keys. What follows the last key up to the
    end of its panel is of no key.
    """
    item = logits.itemsize
    lanes = VECTOR // item
    lead = (lo - starts[chunk]) % (2 * lanes)
    first = (lo - starts[chunk]) // (2 * lanes) * 2
    column = 0
    while lo < hi:
        stop = min(hi, starts[chunk + 1])
        last = -(-(stop - starts[chunk]) // lanes)
        in_chunk = panels.groups[chunk + 1] - panels.groups[chunk]
        for group in range(first, last, 2):
            vectors = 2 if group + 1 < in_chunk else 1
            panel = panels.address + (panels.groups[chunk] + group) * lanes * panels.depth * item
            place = logits.ctypes.data + (column + (group - first) * lanes) * item
            multiply(
                panels.product, rows, vectors, strip.ctypes.data, panel, vectors * lanes * item, place,
                LOGIT_ROW * item, panels.depth, 0,
            )  # fmt: skip
        column += stop - starts[chunk] - first * lanes
        lo = stop
        chunk += 1
        first = 0
    return lead


@njit(nogil=True)
def load_strip(strip, source, ids, first, rows):  # type: ignore[no-untyped-def]
    """Copy rows `ids[first : first + rows]` of `source` (rows, whole vectors) to the strip buffer."""
    item, width = source.itemsize, source.shape[1]
    for r in range(rows):
        row = source.ctypes.data + ids[first + r] * width * item
        row_copy(strip.dtype.type(0), strip.ctypes.data + r * ROW * item, row, width * item // VECTOR)


@njit(nogil=True)
def _mask_range(logits, base, lo, hi, keep_lo, keep_hi):  # type: ignore[no-untyped-def]
    """Set the logits of the keys lo ... hi - 1 to -inf, but for keep_lo ... keep_hi - 1."""
    for j in range(lo, min(max(keep_lo, lo), hi)):
        logits[base + j] = -np.inf
    for j in range(max(min(keep_hi, hi), lo), hi):
        logits[base + j] = -np.inf


@njit(nogil=True)
def _mask_anchors(logits, base, lo, hi, query, sample):  # type: ignore[no-untyped-def]
    """Set the logits of the keys lo ... hi - 1 that are anchors of the query to -inf."""
    run = sample.run_of[query]
    for at in range(sample.anchor_ptr[run], sample.anchor_ptr[run + 1]):
        for j in range(max(lo, sample.anchor_lo[at]), min(hi, sample.anchor_hi[at])):
            logits[base + j] = -np.inf
    if sample.reach >= 0:
        position = sample.q_start + query
        for j in range(max(lo, position - sample.reach), min(hi, position + sample.reach + 1)):
            logits[base + j] = -np.inf


@njit(nogil=True)
def mask_strip(logits, rows, ids, at, block, lead, lo, hi, kind):  # type: ignore[no-untyped-def]
    """Set the logits of pairs that do not count to -inf; return whether the strip needed a look at all."""
    sample = block.sample
    first = sample.q_start + block.first + ids[at]
    if kind == EVERY and not (sample.token_causal and hi - 1 > first):
        return False
    for r in range(rows):
        query = block.first + ids[at + r]
        position = sample.q_start + query
        base = r * LOGIT_ROW + lead - lo
        if kind == NO_ANCHOR:
            _mask_anchors(logits, base, lo, hi, query, sample)
            continue
        keep_lo = position - sample.reach if kind == BAND else lo
        keep_hi = position + sample.reach + 1 if kind == BAND else hi
        if sample.token_causal:
            keep_hi = min(keep_hi, position + 1)
        _mask_range(logits, base, lo, hi, keep_lo, keep_hi)
    return True


@njit(nogil=True)
def out_of_sight(ids, at, rows, block, lo, hi, kind):  # type: ignore[no-untyped-def]
    """Return whether causality or the band rules out every pair of a strip, whose ids ascend."""
    sample = block.sample
    low, high = sample.q_start + block.first + ids[at], sample.q_start + block.first + ids[at + rows - 1]
    if sample.token_causal and lo > high:
        return True
    return kind == BAND and (hi <= low - sample.reach or lo > high + sample.reach)


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

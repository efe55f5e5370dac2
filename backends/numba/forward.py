"""Forward: out and lse of every query, from anchors as dense rectangles and routes chunk by chunk.

The work is cut into (head, query block) units. A unit keeps the running maximum, sum and weighted values of its
queries in cache, and adds tiles of keys to them by online softmax: rectangles of anchored keys for runs of neighbouring
queries, and for each chunk the gathered queries of the block that chose it. Logits are in powers of two: the queries
are scaled by log2(e) at loading. Units are independent, so that results do not depend on the number of threads.

Source of the online softmax: Milakov and Gimelshein, arXiv 1805.02867; of the tiling: FlashAttention, 2205.14135.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, fetch_add, multiply, row_exp2, row_max
from sparsemoc.backends.numba.memory import load_row, store_row
from sparsemoc.backends.numba.tiles import load_strip, mask_anchors, mask_range, non_finite_rows, strip_logits

LN2 = np.log(2.0)


@njit(nogil=True)
def chunk_lists(selected, first, stop, counts, queries):  # type: ignore[no-untyped-def]
    """Counting sort of the routes of queries first ... stop - 1 by chunk, queries ascending within a chunk.

    The block rows that chose chunk c become queries[counts[c] : counts[c + 1]]; counts has chunks + 2 entries.
    """
    counts[:] = 0
    for query in range(first, stop):
        for slot in range(selected.shape[1]):
            chunk = selected[query, slot]
            if chunk < 0:
                break
            counts[chunk + 2] += 1
    for chunk in range(2, len(counts)):
        counts[chunk] += counts[chunk - 1]
    for query in range(first, stop):
        for slot in range(selected.shape[1]):
            chunk = selected[query, slot]
            if chunk < 0:
                break
            queries[counts[chunk + 1]] = query - first
            counts[chunk + 1] += 1


@njit(nogil=True)
def _absorb(state, strips, rows, ids, first, lead, count, values, lanes):  # type: ignore[no-untyped-def]
    """Add a strip of logits against `count` keys, from column `lead` on, to the running state of its queries."""
    top, total, mixed = state
    _, logits, parts, fade, _ = strips
    like = logits.dtype.type(0)
    item = logits.itemsize
    vectors = -(-count // lanes)
    at = logits.ctypes.data + lead * item
    for r in range(rows):
        row = ids[first + r]
        for column in range(lead + count, lead + vectors * lanes):
            logits[r * LOGIT_ROW + column] = -np.inf
        before = top[row]
        after = max(before, row_max(like, at + r * LOGIT_ROW * item, vectors))
        shift = after if after > -np.inf else like
        fade[r] = like if before == -np.inf else np.exp2(before - shift)
        total[row] = total[row] * fade[r] + row_exp2(like, at + r * LOGIT_ROW * item, vectors, shift)
        top[row] = after
    width = mixed.shape[1]
    for column in range(0, width, 2 * lanes):
        multiply(
            strips[4][1], rows, 2 if column + lanes < width else 1, at, values.ctypes.data + column * item, width * item,
            parts.ctypes.data + column * item, ROW * item, count, 0,
        )  # fmt: skip
    for r in range(rows):
        row = ids[first + r]
        for column in range(width):
            mixed[row, column] = mixed[row, column] * fade[r] + parts[r * ROW + column]


@njit(nogil=True)
def _absorb_exactly(state, strips, rows, ids, first, lead, values, lo, hi, lanes, bad):  # type: ignore[no-untyped-def]
    """As `_absorb`, where some of the values are not finite: a masked key must not count, and 0 * NaN is NaN."""
    clean = values[lo:hi].copy()
    for j in bad:
        clean[j - lo] = 0
    _absorb(state, strips, rows, ids, first, lead, hi - lo, clean, lanes)
    _, _, mixed = state
    for r in range(rows):
        for j in bad:
            weight = strips[1][r * LOGIT_ROW + lead + j - lo]
            if weight != 0:
                mixed[ids[first + r]] += weight * values[j]


@njit(nogil=True)
def _mask_strip(logits, rows, ids, at, lead, lo, hi, masks, kind):  # type: ignore[no-untyped-def]
    anchors, run_of, reach, token_causal, block, q_start = masks
    for r in range(rows):
        query = block + ids[at + r]
        position = q_start + query
        if kind == 2:
            mask_anchors(logits, r, lead, lo, hi, position, run_of[query], anchors, reach)
            continue
        keep_lo = position - reach if kind == 1 else lo
        keep_hi = position + reach + 1 if kind == 1 else hi
        if token_causal:
            keep_hi = min(keep_hi, position + 1)
        mask_range(logits, r, lead, lo, hi, keep_lo, keep_hi)


@njit(nogil=True)
def _tile(state, strips, queries, ids, first, stop, keys, chunk, lo, hi, masks, kind):  # type: ignore[no-untyped-def]
    """Add the keys lo ... hi - 1 to the queries ids[first : stop] of a block, strip by strip.

    kind 0: every pair; 1: pairs within reach (a band); 2: keys that are no anchor of the query.
    """
    panels, values, starts, groups, lanes = keys
    _, _, reach, token_causal, block, q_start = masks
    strip, logits, _, _, products = strips
    most = strip.shape[0] // ROW
    parts = -(-(stop - first) // most)
    for part in range(parts):
        at = first + (stop - first) * part // parts
        rows = first + (stop - first) * (part + 1) // parts - at
        low, high = q_start + block + ids[at], q_start + block + ids[at + rows - 1]
        if (token_causal and lo > high) or (kind == 1 and (hi <= low - reach or lo > high + reach)):
            continue
        load_strip(strip, queries, ids, at, rows)
        lead = strip_logits(
            products[0], logits, strip, rows, panels, queries.shape[1], lanes, starts, groups,
            chunk, lo, hi,
        )  # fmt: skip
        if kind != 0 or (token_causal and hi - 1 > low):
            _mask_strip(logits, rows, ids, at, lead, lo, hi, masks, kind)
            bad = non_finite_rows(values, lo, hi)
            if len(bad) > 0:
                _absorb_exactly(state, strips, rows, ids, at, lead, values, lo, hi, lanes, bad)
                continue
        _absorb(state, strips, rows, ids, at, lead, hi - lo, values[lo:hi], lanes)


@njit(nogil=True)
def _anchors(state, strips, queries, ids, rectangles, keys, masks, most_keys):  # type: ignore[no-untyped-def]
    """Add every anchored key to the queries of a block: key tiles outside, so that a tile stays in cache."""
    q_lo, q_hi, k_lo, k_hi, banded = rectangles
    starts = keys[2]
    first_query = masks[4] + masks[5]
    for index in range(len(q_lo)):
        first = max(q_lo[index] - first_query, 0)
        stop = min(q_hi[index] - first_query, queries.shape[0])
        if first >= stop:
            continue
        tiles = -(-(k_hi[index] - k_lo[index]) // most_keys)
        for tile in range(tiles):
            lo = k_lo[index] + (k_hi[index] - k_lo[index]) * tile // tiles
            hi = k_lo[index] + (k_hi[index] - k_lo[index]) * (tile + 1) // tiles
            chunk = np.searchsorted(starts, lo, side="right") - 1
            kind = 1 if banded[index] else 0
            _tile(state, strips, queries, ids, first, stop, keys, chunk, lo, hi, masks, kind)


@njit(nogil=True)
def _routes(state, strips, queries, counts, chosen, stops, partial, keys, masks, most_keys):  # type: ignore[no-untyped-def]
    """Add each chunk's keys to the queries of the block that chose it."""
    starts = keys[2]
    for chunk in range(len(stops)):
        first, stop = counts[chunk], counts[chunk + 1]
        if first == stop:
            continue
        length = stops[chunk] - starts[chunk]
        tiles = -(-length // most_keys)
        for tile in range(tiles):
            lo = starts[chunk] + length * tile // tiles
            hi = starts[chunk] + length * (tile + 1) // tiles
            _tile(state, strips, queries, chosen, first, stop, keys, chunk, lo, hi, masks, 2 if partial else 0)


@njit(nogil=True)
def _unit(unit, blocks, group, inputs, outputs, sample, scratch, sizes, scale):  # type: ignore[no-untyped-def]
    """Compute one (head, query block)."""
    q, code, panels, values, selected = inputs
    out, lse = outputs
    rectangles, anchors, run_of, starts, stops, chunk_groups, reach, token_causal, partial, q_start = sample
    loaded, mixed, top, total, strip, logits, parts, fade, counts, chosen, ids = scratch
    lanes, most_keys, products = sizes
    head, index = unit // (len(blocks) - 1), unit % (len(blocks) - 1)
    first, stop = blocks[index], blocks[index + 1]
    rows = stop - first
    like = logits.dtype.type(0)
    for row in range(rows):
        load_row(loaded, row, q[0, first + row, head], code, like + scale)
    top[:rows], total[:rows], mixed[:rows] = -np.inf, 0, 0
    state, strips, queries = (top, total, mixed), (strip, logits, parts, fade, products), loaded[:rows]
    kv_head = head // group
    keys = (panels[kv_head].ctypes.data, values[kv_head], starts, chunk_groups, lanes)
    masks = (anchors, run_of, reach, token_causal, first, q_start)
    _anchors(state, strips, queries, ids, rectangles, keys, masks, most_keys)
    if selected.shape[2] > 0:
        chunk_lists(selected[head], first, stop, counts, chosen)
        _routes(state, strips, queries, counts, chosen, stops, partial, keys, masks, most_keys)
    for row in range(rows):
        inverse = 1 / total[row] if total[row] != 0 else like
        store_row(out[0, first + row, head], mixed, row, code, inverse)
        lse[head, first + row] = (top[row] + np.log2(total[row])) * LN2 if total[row] != 0 else -np.inf


@njit(nogil=True, cache=True)
def attend_units(counter, blocks, group, inputs, outputs, sample, scratch, sizes, scale):  # type: ignore[no-untyped-def]
    """Run units of a sample until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        blocks: (query blocks + 1,) bounds of the query rows.
        group: query heads to a key head.
        inputs: q (., queries, heads, head_dim), its dtype code, panels, value rows, selected (heads, queries, slots).
        outputs: out (., queries, heads, v_head_dim), lse (heads, queries).
        sample: the plan's arrays, see `launch.sample_arrays`.
        scratch: the worker's own, see `launch.forward_scratch`.
        sizes: lanes of a vector, most keys to a tile, addresses of the row and key products.
        scale: factor on logits, times log2(e).
    """
    units = inputs[0].shape[2] * (len(blocks) - 1)
    unit = fetch_add(counter.ctypes.data, 1)
    while unit < units:
        _unit(unit, blocks, group, inputs, outputs, sample, scratch, sizes, scale)
        unit = fetch_add(counter.ctypes.data, 1)

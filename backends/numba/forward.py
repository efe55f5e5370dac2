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

from sparsemoc.backends.numba.compiled import kernel
from sparsemoc.backends.numba.intrinsics import (
    LOGIT_ROW,
    ROW,
    STRIP,
    VECTOR,
    borrowed,
    fetch_add,
    multiply,
    row_blend,
    row_exp2,
    row_max,
)
from sparsemoc.backends.numba.memory import fetch_ahead, load_row, store_row
from sparsemoc.backends.numba.structs import BAND, EVERY, NO_ANCHOR, Block, Panels, State, Strips, borrowed_sample
from sparsemoc.backends.numba.tiles import load_strip, mask_strip, non_finite_rows, out_of_sight, strip_logits

LN2 = np.log(2.0)
LOG2_E = 1 / LN2


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
def _absorb(state, strips, rows, ids, first, lead, count, values):  # type: ignore[no-untyped-def]
    """Add a strip of logits against `count` keys, from column `lead` on, to the running state of its queries."""
    logits, fade, width = strips.logits, strips.fade, state.mixed.shape[1]
    like, item = logits.dtype.type(0), logits.itemsize
    lanes = VECTOR // item
    vectors = -(-count // lanes)
    at = logits.ctypes.data + lead * item
    # In a loop of its own: a wide load right after these narrow stores would wait for them.
    for r in range(rows):
        for column in range(lead + count, lead + vectors * lanes):
            logits[r * LOGIT_ROW + column] = -np.inf
    for r in range(rows):
        row = ids[first + r]
        before = state.top[row]
        after = max(before, row_max(like, at + r * LOGIT_ROW * item, vectors))
        shift = after if after > -np.inf else like
        fade[r] = before - shift
        strips.sums[r] = row_exp2(like, at + r * LOGIT_ROW * item, vectors, shift)
        state.top[row] = after
    row_exp2(like, fade.ctypes.data, -(-rows // lanes), like)
    for column in range(0, width, 2 * lanes):
        multiply(
            strips.key_product, rows, 2 if column + lanes < width else 1, at, values.ctypes.data + column * item,
            width * item, strips.parts.ctypes.data + column * item, ROW * item, count, 0,
        )  # fmt: skip
    for r in range(rows):
        row = ids[first + r]
        state.total[row] = state.total[row] * fade[r] + strips.sums[r]
        place = state.mixed.ctypes.data + row * width * item
        row_blend(like, place, fade[r], strips.parts.ctypes.data + r * ROW * item, width // lanes)


@njit(nogil=True)
def _absorb_exactly(state, strips, rows, ids, first, lead, values, lo, hi, bad):  # type: ignore[no-untyped-def]
    """As `_absorb`, where some of the values are not finite: a masked key must not count, and 0 * NaN is NaN."""
    clean = values[lo:hi].copy()
    for j in bad:
        clean[j - lo] = 0
    _absorb(state, strips, rows, ids, first, lead, hi - lo, clean)
    for r in range(rows):
        for j in bad:
            weight = strips.logits[r * LOGIT_ROW + lead + j - lo]
            if weight != 0:
                state.mixed[ids[first + r]] += weight * values[j]


@njit(nogil=True)
def _tile(state, strips, queries, ids, first, stop, block, panels, values, chunk, lo, hi, kind):  # type: ignore[no-untyped-def]
    """Add the keys lo ... hi - 1 to the queries ids[first : stop] of a block, strip by strip of nearly equal rows."""
    parts = -(-(stop - first) // STRIP)
    few, longer = (stop - first) // parts, (stop - first) % parts
    masks = kind != EVERY or block.sample.token_causal
    at, rows = first, 0
    for part in range(parts):
        at += rows
        rows = few + 1 if part < longer else few
        if masks and out_of_sight(ids, at, rows, block, lo, hi, kind):
            continue
        load_strip(strips.queries, queries, ids, at, rows)
        lead = strip_logits(strips.logits, strips.queries, rows, panels, block.sample.starts, chunk, lo, hi)
        if masks and mask_strip(strips.logits, rows, ids, at, block, lead, lo, hi, kind):
            bad = non_finite_rows(values, lo, hi)
            if len(bad) > 0:
                _absorb_exactly(state, strips, rows, ids, at, lead, values, lo, hi, bad)
                continue
        _absorb(state, strips, rows, ids, at, lead, hi - lo, values[lo:hi])


@njit(nogil=True)
def _anchors(state, strips, queries, ids, block, panels, values, most_keys):  # type: ignore[no-untyped-def]
    """Add every anchored key to the queries of a block: key tiles outside, so that a tile stays in cache."""
    sample = block.sample
    origin = sample.q_start + block.first
    for index in range(len(sample.q_lo)):
        first = max(sample.q_lo[index] - origin, 0)
        stop = min(sample.q_hi[index] - origin, queries.shape[0])
        if first >= stop:
            continue
        start, length = sample.k_lo[index], sample.k_hi[index] - sample.k_lo[index]
        tiles = -(-length // most_keys)
        for tile in range(tiles):
            lo, hi = start + length * tile // tiles, start + length * (tile + 1) // tiles
            chunk = np.searchsorted(sample.starts, lo, side="right") - 1
            kind = BAND if sample.banded[index] else EVERY
            _tile(state, strips, queries, ids, first, stop, block, panels, values, chunk, lo, hi, kind)


@njit(nogil=True)
def _routes(state, strips, queries, counts, chosen, block, panels, values, most_keys):  # type: ignore[no-untyped-def]
    """Add each chunk's keys to the queries of the block that chose it."""
    sample = block.sample
    kind = NO_ANCHOR if sample.splits_chunks else EVERY
    for chunk in range(len(sample.stops)):
        first, stop = counts[chunk], counts[chunk + 1]
        start, length = sample.starts[chunk], sample.stops[chunk] - sample.starts[chunk]
        tiles = -(-length // most_keys) if first < stop else 0
        for tile in range(tiles):
            lo, hi = start + length * tile // tiles, start + length * (tile + 1) // tiles
            _tile(state, strips, queries, chosen, first, stop, block, panels, values, chunk, lo, hi, kind)


@njit(nogil=True)
def _unit(unit, blocks, group, inputs, outputs, sample, scratch, sizes, scale):  # type: ignore[no-untyped-def]
    """Compute one (head, query block)."""
    q, code, key_panels, groups, value_rows, selected = inputs
    out, lse = outputs
    loaded, state, strips, counts, chosen, ids = scratch
    most_keys, product = sizes
    head, index = unit // (len(blocks) - 1), unit % (len(blocks) - 1)
    first, stop = blocks[index], blocks[index + 1]
    rows = stop - first
    zero = lse.dtype.type(0)
    for row in range(rows):
        fetch_ahead(q, first + row, head)
        load_row(loaded, row, q[0, first + row, head], code, zero + scale)
    state.top[:rows], state.total[:rows], state.mixed[:rows] = -np.inf, 0, 0
    queries, block = loaded[:rows], Block(sample, first)
    panels = Panels(key_panels[head // group].ctypes.data, key_panels.shape[2], groups, product)
    values = value_rows[head // group]
    _anchors(state, strips, queries, ids, block, panels, values, most_keys)
    if selected.shape[2] > 0:
        chunk_lists(selected[head], first, stop, counts, chosen)
        _routes(state, strips, queries, counts, chosen, block, panels, values, most_keys)
    for row in range(rows):
        total = state.total[row]
        store_row(out[0, first + row, head], state.mixed, row, code, 1 / total if total != 0 else zero)
        lse[head, first + row] = (state.top[row] + np.log2(total)) * LN2 if total != 0 else -np.inf


@kernel
def attend_units(counter, blocks, group, inputs, outputs, sample, scratch, sizes, scale):  # type: ignore[no-untyped-def]
    """Run units of a sample until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        blocks: (query blocks + 1,) bounds of the query rows.
        group: query heads to a key head.
        inputs: q (., queries, heads, head_dim), its dtype code, key panels (kv_heads, padded keys, depth) and their
            groups, value rows (kv_heads, keys, padded v_head_dim), selected (heads, queries, slots).
        outputs: out (., queries, heads, v_head_dim), lse (heads, queries).
        sample: see `structs.Sample`.
        scratch: the worker's own, see `launch.forward_scratch`.
        sizes: most keys to a tile, address of the row product.
        scale: factor on logits, times log2(e).
    """
    q, code, key_panels, groups, value_rows, selected = inputs
    loaded, state, strips, counts, chosen, ids = scratch
    units = q.shape[2] * (len(blocks) - 1)
    inputs = (borrowed(q), code, borrowed(key_panels), borrowed(groups), borrowed(value_rows), borrowed(selected))
    outputs = (borrowed(outputs[0]), borrowed(outputs[1]))
    sample = borrowed_sample(sample)
    state = State(borrowed(state.top), borrowed(state.total), borrowed(state.mixed))
    strips = Strips(
        borrowed(strips.queries), borrowed(strips.logits), borrowed(strips.parts), borrowed(strips.fade),
        borrowed(strips.sums), strips.key_product,
    )  # fmt: skip
    scratch = (borrowed(loaded), state, strips, borrowed(counts), borrowed(chosen), borrowed(ids))
    unit = fetch_add(counter.ctypes.data, 1)
    while unit < units:
        _unit(unit, blocks, group, inputs, outputs, sample, scratch, sizes, scale)
        unit = fetch_add(counter.ctypes.data, 1)

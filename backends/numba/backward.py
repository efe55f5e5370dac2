"""Backward: dq, dk, dv in five matrix products per tile, from the merged out and lse of the forward.

With P = exp(logits - lse) and delta = <d_out, out> - d_lse: dS = P * (d_out V^T - delta), dv += P^T d_out,
dq += dS K, dk += dS^T Q. The work is cut into (key block, query block) units. In phase p, key block i meets query
block (i + p) mod n: no two units of a phase share a block, so that every gradient has one writer at a time, and the
order of all sums is fixed, whatever the number of threads.

Source of the recomputation: FlashAttention, arXiv 2205.14135.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.compiled import kernel
from sparsemoc.backends.numba.forward import LOG2_E, chunk_lists
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
    row_grad,
)
from sparsemoc.backends.numba.memory import load_row, store_row
from sparsemoc.backends.numba.structs import BAND, EVERY, NO_ANCHOR, Block, Grads, Panels, Tile, borrowed_sample
from sparsemoc.backends.numba.tiles import mask_strip, non_finite_rows, out_of_sight, strip_logits


@kernel
def index_routes(worker, workers, selected, blocks, counts, chosen):  # type: ignore[no-untyped-def]
    """Sort the routes of each (head, query block) by chunk: counts (heads, blocks, chunks + 2), chosen (heads, .)."""
    slots = selected.shape[2]
    for unit in range(worker, selected.shape[0] * (len(blocks) - 1), workers):
        head, block = unit // (len(blocks) - 1), unit % (len(blocks) - 1)
        first, stop = blocks[block], blocks[block + 1]
        chunk_lists(selected[head], first, stop, counts[head, block], chosen[head, first * slots : stop * slots])


@kernel
def row_constants(worker, workers, out, d_out, code, lse, d_lse, shift, delta):  # type: ignore[no-untyped-def]
    """Write lse in powers of two, 0 for empty rows, to `shift`, and <d_out, out> - d_lse to `delta`."""
    kind = shift.dtype.type
    rows = np.empty((2, out.shape[3]), shift.dtype)
    for head in range(shift.shape[0]):
        for query in range(worker, shift.shape[1], workers):
            load_row(rows, 0, out[0, query, head], code, kind(1))
            load_row(rows, 1, d_out[0, query, head], code, kind(1))
            value = lse[head, query]
            shift[head, query] = value * kind(LOG2_E) if value != -np.inf else kind(0)
            delta[head, query] = (rows[0] * rows[1]).sum() - d_lse[head, query]


@kernel
def store_rows(worker, workers, target, source, code, factor):  # type: ignore[no-untyped-def]
    """Copy (heads, tokens, padded head_dim) times a factor to the caller's (., tokens, heads, head_dim)."""
    tokens = source.shape[1]
    for head in range(source.shape[0]):
        for token in range(tokens * worker // workers, tokens * (worker + 1) // workers):
            store_row(target[0, token, head], source[head], token, code, source.dtype.type(factor))


@njit(nogil=True)
def _load_tile(tile, inputs, head, ids, first, rows, block):  # type: ignore[no-untyped-def]
    """Load a tile's queries, scaled, and its gradients of out."""
    kind = tile.queries.dtype.type
    queries, grads = tile.queries.reshape(-1, ROW), tile.grads.reshape(-1, ROW)
    q, d_out, code, scale = inputs
    for r in range(rows):
        query = block.first + ids[first + r]
        load_row(queries, r, q[0, query, head], code, kind(scale))
        load_row(grads, r, d_out[0, query, head], code, kind(1))


@njit(nogil=True)
def _slopes(tile, at, rows, ids, first, block, constants, keys, values, chunk, lo, hi, kind):  # type: ignore[no-untyped-def]
    """Fill P and dS of a strip, rows `at` ... of its tile; return (lead, whether pairs were masked)."""
    shift, delta = constants
    like, item = tile.weights.dtype.type(0), tile.weights.itemsize
    lanes = VECTOR // item
    vectors = -(-(hi - lo) // lanes)
    weights, slopes = tile.weights[at * LOGIT_ROW :], tile.slopes[at * LOGIT_ROW :]
    starts = block.sample.starts
    lead = strip_logits(weights, tile.queries[at * ROW :], rows, keys, starts, chunk, lo, hi)
    strip_logits(slopes, tile.grads[at * ROW :], rows, values, starts, chunk, lo, hi)
    masked = mask_strip(weights, rows, ids, first + at, block, lead, lo, hi, kind)
    for r in range(rows):
        query = block.first + ids[first + at + r]
        for column in range(lead + hi - lo, lead + vectors * lanes):
            weights[r * LOGIT_ROW + column] = -np.inf
        offset = (r * LOGIT_ROW + lead) * item
        if np.isnan(shift[query]):
            # Every pair of the query is NaN, and a masked one is still 0: -inf - NaN must not make it NaN.
            for column in range(r * LOGIT_ROW + lead, r * LOGIT_ROW + lead + vectors * lanes):
                weights[column] = 0 if weights[column] == -np.inf else np.nan
        else:
            row_exp2(like, weights.ctypes.data + offset, vectors, shift[query])
        row_grad(like, slopes.ctypes.data + offset, weights.ctypes.data + offset, vectors, delta[query])
    return lead, masked


@njit(nogil=True)
def _query_grads(tile, at, rows, ids, first, block, dq, key_rows, lead, lo, hi, product):  # type: ignore[no-untyped-def]
    """Add dS K of a strip to dq."""
    like, item, width = dq.dtype.type(0), dq.itemsize, dq.shape[1]
    lanes = VECTOR // item
    slopes = tile.slopes.ctypes.data + (at * LOGIT_ROW + lead) * item
    rows_at = key_rows.ctypes.data + lo * width * item
    for column in range(0, width, 2 * lanes):
        multiply(
            product, rows, 2 if column + lanes < width else 1, slopes, rows_at + column * item, width * item,
            tile.parts.ctypes.data + column * item, ROW * item, hi - lo, 0,
        )  # fmt: skip
    for r in range(rows):
        place = dq.ctypes.data + (block.first + ids[first + at + r]) * width * item
        row_blend(like, place, like + 1, tile.parts.ctypes.data + r * ROW * item, width // lanes)


@njit(nogil=True)
def _key_grads(target, lo, hi, logits, lead, strip, rows, product):  # type: ignore[no-untyped-def]
    """target[lo : hi] += L^T S, L the tile's (rows, keys) weights or slopes and S its rows of the head_dim."""
    item, width = target.itemsize, target.shape[1]
    lanes = VECTOR // item
    count = hi - lo
    parts = -(-count // STRIP)
    for column in range(0, width, 2 * lanes):
        vectors = 2 if column + lanes < width else 1
        for part in range(parts):
            first = count * part // parts
            keys = count * (part + 1) // parts - first
            multiply(
                product, keys, vectors, logits.ctypes.data + (lead + first) * item, strip.ctypes.data + column * item,
                ROW * item, target.ctypes.data + ((lo + first) * width + column) * item, width * item, rows, 1,
            )  # fmt: skip


@njit(nogil=True)
def _add_exactly(tile, rows, ids, first, block, grads, key_rows, lead, lo, hi):  # type: ignore[no-untyped-def]
    """Add a tile's gradients pair by pair, where not all is finite: a masked pair must not count, and 0 * NaN does."""
    queries, d_out = tile.queries.reshape(-1, ROW), tile.grads.reshape(-1, ROW)
    depth, v_depth = grads.dq.shape[1], grads.dv.shape[1]
    for r in range(rows):
        for j in range(lo, hi):
            weight = tile.weights[r * LOGIT_ROW + lead + j - lo]
            slope = tile.slopes[r * LOGIT_ROW + lead + j - lo]
            if weight != 0:
                grads.dv[j] += weight * d_out[r, :v_depth]
            if slope != 0:
                grads.dk[j] += slope * queries[r, :depth]
                grads.dq[block.first + ids[first + r]] += slope * key_rows[j]


@njit(nogil=True)
def _finite(tile, rows, key_rows, lo, hi):  # type: ignore[no-untyped-def]
    queries, grads = tile.queries.reshape(-1, ROW), tile.grads.reshape(-1, ROW)
    bad = len(non_finite_rows(key_rows, lo, hi)) + len(non_finite_rows(queries, 0, rows))
    return bad + len(non_finite_rows(grads, 0, rows)) == 0


@njit(nogil=True)
def _tile(tile, inputs, head, ids, first, rows, block, constants, grads, side, chunk, lo, hi, kind):  # type: ignore[no-untyped-def]
    """Add the gradients of the queries ids[first : first + rows] against the keys lo ... hi - 1."""
    keys, values, key_rows, products = side
    _load_tile(tile, inputs, head, ids, first, rows, block)
    parts = -(-rows // STRIP)
    lead, masked = 0, False
    for part in range(parts):
        at = rows * part // parts
        count = rows * (part + 1) // parts - at
        lead, mask = _slopes(tile, at, count, ids, first, block, constants, keys, values, chunk, lo, hi, kind)
        masked = masked or mask
    if masked and not _finite(tile, rows, key_rows, lo, hi):
        _add_exactly(tile, rows, ids, first, block, grads, key_rows, lead, lo, hi)
        return
    for part in range(parts):
        at = rows * part // parts
        count = rows * (part + 1) // parts - at
        _query_grads(tile, at, count, ids, first, block, grads.dq, key_rows, lead, lo, hi, products[0])
    _key_grads(grads.dv, lo, hi, tile.weights, lead, tile.grads, rows, products[1])
    _key_grads(grads.dk, lo, hi, tile.slopes, lead, tile.queries, rows, products[1])


@njit(nogil=True)
def _tiles(tile, inputs, head, ids, first, stop, block, constants, grads, side, start, end, kind, sizes):  # type: ignore[no-untyped-def]
    """Add the gradients of the queries ids[first : stop] against the keys start ... end - 1, tile by tile."""
    most_rows, most_keys = sizes
    starts = block.sample.starts
    key_tiles, row_tiles = -(-(end - start) // most_keys), -(-(stop - first) // most_rows)
    for key_tile in range(key_tiles):
        lo = start + (end - start) * key_tile // key_tiles
        hi = start + (end - start) * (key_tile + 1) // key_tiles
        chunk = np.searchsorted(starts, lo, side="right") - 1
        for row_tile in range(row_tiles):
            at = first + (stop - first) * row_tile // row_tiles
            rows = first + (stop - first) * (row_tile + 1) // row_tiles - at
            if not out_of_sight(ids, at, rows, block, lo, hi, kind):
                _tile(tile, inputs, head, ids, at, rows, block, constants, grads, side, chunk, lo, hi, kind)


@njit(nogil=True)
def _unit(head, group, rows, chunks, inputs, packed, routes, constants, sample, grads, scratch, sizes):  # type: ignore[no-untyped-def]
    """Add what the query rows `rows` of one head and the keys of the chunks `chunks` give each other."""
    key_panels, key_groups, value_panels, value_groups, key_rows, products = packed
    counts, chosen = routes
    tile, ids = scratch
    shift, delta = constants
    dq, dk, dv = grads
    kv_head = head // group
    first_key, last_key = sample.starts[chunks[0]], sample.starts[chunks[1]]
    block = Block(sample, rows[0])
    keys = Panels(key_panels[kv_head].ctypes.data, key_panels.shape[2], key_groups, products[2])
    values = Panels(value_panels[kv_head].ctypes.data, value_panels.shape[2], value_groups, products[2])
    side = (keys, values, key_rows[kv_head], products)
    own, targets = (shift[head], delta[head]), Grads(dq[head], dk[kv_head], dv[kv_head])
    origin = sample.q_start + rows[0]
    for index in range(len(sample.q_lo)):
        first, stop = max(sample.q_lo[index] - origin, 0), min(sample.q_hi[index] - origin, rows[1] - rows[0])
        start, end = max(sample.k_lo[index], first_key), min(sample.k_hi[index], last_key)
        if first < stop and start < end:
            kind = BAND if sample.banded[index] else EVERY
            _tiles(tile, inputs, head, ids, first, stop, block, own, targets, side, start, end, kind, sizes)
    if len(chosen) > 0:
        kind = NO_ANCHOR if sample.splits_chunks else EVERY
        for chunk in range(chunks[0], chunks[1]):
            first, stop = counts[chunk], counts[chunk + 1]
            start, end = sample.starts[chunk], sample.stops[chunk]
            if first < stop:
                _tiles(tile, inputs, head, chosen, first, stop, block, own, targets, side, start, end, kind, sizes)


@kernel
def gradient_units(  # type: ignore[no-untyped-def]
    counter, phase, blocks, chunk_blocks, group, inputs, packed, routes, constants, sample, grads, scratch, sizes
):
    """Run units of one phase until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        phase: key block i meets query block (i + phase) mod n.
        blocks: (query blocks + 1,) bounds of the query rows.
        chunk_blocks: (key blocks + 1,) bounds of the chunks of each key block.
        group: query heads to a key head.
        inputs: q and d_out (., queries, heads, .), their dtype code, the factor on logits times log2(e).
        packed: key panels and groups, value panels and groups, key rows (kv_heads, keys, depth), and the
            addresses of the key, query and row products.
        routes: counts (heads, query blocks, chunks + 2), chosen (heads, queries * slots), slots.
        constants: shift, delta (heads, queries).
        sample: see `structs.Sample`.
        grads: dq (heads, queries, depth), dk (kv_heads, keys, depth), dv (kv_heads, keys, v_depth), added to.
        scratch: the worker's `structs.Tile`, and the rows of a block counted up.
        sizes: most queries and keys to a tile.
    """
    query_blocks, key_blocks = len(blocks) - 1, len(chunk_blocks) - 1
    most = max(query_blocks, key_blocks)
    kv_heads = packed[0].shape[0]
    counts, chosen, slots = borrowed(routes[0]), borrowed(routes[1]), routes[2]
    inputs = (borrowed(inputs[0]), borrowed(inputs[1]), inputs[2], inputs[3])
    packed = (
        borrowed(packed[0]), borrowed(packed[1]), borrowed(packed[2]), borrowed(packed[3]), borrowed(packed[4]),
        packed[5],
    )  # fmt: skip
    constants = (borrowed(constants[0]), borrowed(constants[1]))
    sample = borrowed_sample(sample)
    grads = (borrowed(grads[0]), borrowed(grads[1]), borrowed(grads[2]))
    tile = scratch[0]
    tile = Tile(
        borrowed(tile.queries), borrowed(tile.grads), borrowed(tile.weights), borrowed(tile.slopes),
        borrowed(tile.parts),
    )  # fmt: skip
    scratch = (tile, borrowed(scratch[1]))
    unit = fetch_add(counter.ctypes.data, 1)
    while unit < kv_heads * most:
        kv_head, key_block = unit // most, unit % most
        query_block = (key_block + phase) % most
        if key_block < key_blocks and query_block < query_blocks:
            rows = (blocks[query_block], blocks[query_block + 1])
            chunks = (chunk_blocks[key_block], chunk_blocks[key_block + 1])
            for head in range(kv_head * group, (kv_head + 1) * group):
                lists = (counts[head, query_block], chosen[head, rows[0] * slots : rows[1] * slots])
                _unit(head, group, rows, chunks, inputs, packed, lists, constants, sample, grads, scratch, sizes)
        unit = fetch_add(counter.ctypes.data, 1)

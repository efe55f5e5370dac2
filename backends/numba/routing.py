"""Routing: scores of a panel of units against their candidate chunks, and the running top_k of each.

A panel holds as many units as two vector registers have lanes, transposed, so that a register runs over units. A strip
of centroids against it is one matrix product, whose result goes into the units' lists while it is in cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.compiled import kernel
from sparsemoc.backends.numba.dropout import drop_routes
from sparsemoc.backends.numba.intrinsics import ROW, STRIP, VECTOR, borrowed, fetch_add, multiply
from sparsemoc.backends.numba.memory import fetch_ahead, load_row
from sparsemoc.backends.numba.ranking import NO_SCORE, keep_best, sort_lanes, transpose

#: Units to a vector, and to a panel.
LANES = VECTOR // 4
PANEL = 2 * LANES


@njit(nogil=True)
def _mean_query(target, row, q, head, first, stop, code):  # type: ignore[no-untyped-def]
    """Write the float32 mean of the queries first ... stop - 1 to a row of `target`."""
    fetch_ahead(q, first, head)
    load_row(target, row, q[0, first, head], code, np.float32(1))
    if stop - first > 1:
        other = np.empty((1, target.shape[1]), np.float32)
        for query in range(first + 1, stop):
            load_row(other, 0, q[0, query, head], code, np.float32(1))
            target[row] += other[0]
        target[row] /= np.float32(stop - first)


@njit(nogil=True)
def _load_panel(panel, loaded, head, units, first, count, q, code):  # type: ignore[no-untyped-def]
    """Fill a panel (depth, PANEL) with the units first ... first + count - 1; other lanes keep numbers of no unit."""
    unit_lo, unit_hi, q_start = units[1:]
    depth = panel.shape[0]
    for r in range(count):
        _mean_query(loaded, r, q, head, unit_lo[first + r] - q_start, unit_hi[first + r] - q_start, code)
    for lane in range(0, count, LANES):
        for column in range(0, depth, LANES):
            transpose(
                np.float32(0), panel.ctypes.data + (column * PANEL + lane) * 4, PANEL * 4,
                loaded.ctypes.data + (lane * depth + column) * 4, depth * 4,
            )  # fmt: skip


@njit(nogil=True)
def _panel_routes(panel, count, centroids, candidates, product, scores, lists, most):  # type: ignore[no-untyped-def]
    """Fill the units' lists with the `most` best of their candidates, chunks ascending."""
    ranks, chunks, limits = lists
    ranks[:most], limits[:] = NO_SCORE, np.nan
    vectors = 2 if count > LANES else 1
    for span in range(len(candidates[0])):
        for first in range(candidates[0][span], candidates[1][span], STRIP):
            rows = min(STRIP, candidates[1][span] - first)
            multiply(
                product, rows, vectors, centroids + first * ROW * 4, panel.ctypes.data, PANEL * 4,
                scores.ctypes.data, PANEL * 4, panel.shape[0], 0,
            )  # fmt: skip
            keep_best(
                scores.ctypes.data, rows, vectors, first, ranks.ctypes.data, chunks.ctypes.data, limits.ctypes.data,
                most,
            )  # fmt: skip
    sort_lanes(chunks.ctypes.data, most, vectors)


@njit(nogil=True)
def _take_all(chunks, candidates):  # type: ignore[no-untyped-def]
    """Fill every unit's list with every candidate."""
    count = 0
    for span in range(len(candidates[0])):
        for chunk in range(candidates[0][span], candidates[1][span]):
            chunks[count] = chunk
            count += 1


@njit(nogil=True)
def _write(selected, head, first, units, count, chunks, most, candidates, random, batch):  # type: ignore[no-untyped-def]
    """Apply route dropout to each unit's routes, and write them to every member."""
    unit_first, unit_lo, unit_hi, q_start = units
    for r in range(count):
        unit = first + r
        lo, hi = unit_lo[unit] - q_start, unit_hi[unit] - q_start
        if random[0]:
            routes = drop_routes(random, batch, head, unit_first[unit], chunks[:most, r].copy(), candidates)
            for query in range(lo, hi):
                selected[head, query, : len(routes)] = routes
            continue
        for query in range(lo, hi):
            for slot in range(most):
                selected[head, query, slot] = chunks[slot, r]


@njit(nogil=True)
def _task(head, which, first, stop, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route the units first ... stop - 1 of a group, which share their candidates, for one head."""
    q, code, centroids, group, product = inputs
    units, ptr, candidate_lo, candidate_hi = sample
    loaded, panel, scores, ranks, chunks, limits = scratch
    candidates = (candidate_lo[ptr[which] : ptr[which + 1]], candidate_hi[ptr[which] : ptr[which + 1]])
    available = (candidates[1] - candidates[0]).sum()
    most = min(top_k[head], available)
    if most == available:
        _take_all(chunks, candidates)
    for at in range(first, stop, PANEL):
        count = min(PANEL, stop - at)
        if 0 < most < available:
            _load_panel(panel, loaded, head, units, at, count, q, code)
            means, lists = centroids[head // group].ctypes.data, (ranks, chunks, limits)
            _panel_routes(panel, count, means, candidates, product, scores, lists, most)
        _write(selected, head, at, units, count, chunks, most, candidates, random, batch)


@kernel
def route_units(counter, table, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route units of a sample until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        table: (pieces, 3) group, first unit, stop: the groups cut in pieces of some hundred units.
        top_k: (heads,).
        inputs: q (., queries, heads, head_dim), its dtype code, centroids (kv_heads, chunks, ROW), query heads to a
            key head, address of the row product.
        sample: (unit_first, unit_lo, unit_hi, q_start), candidate_ptr, candidate_lo, candidate_hi.
        scratch: the worker's own, see `launch_routing.routing_scratch`.
        random: (on, key low, key high, batch_start, head_start, off in 2**-16, Poisson table).
        batch: number of the sample in the batch.
        selected: (heads, queries, slots), filled with -1.
    """
    q, code, centroids, group, product = inputs
    (unit_first, unit_lo, unit_hi, q_start), ptr, candidate_lo, candidate_hi = sample
    loaded, panel, scores, ranks, chunks, limits = scratch
    inputs = (borrowed(q), code, borrowed(centroids), group, product)
    units = (borrowed(unit_first), borrowed(unit_lo), borrowed(unit_hi), q_start)
    sample = (units, borrowed(ptr), borrowed(candidate_lo), borrowed(candidate_hi))
    scratch = (
        borrowed(loaded), borrowed(panel), borrowed(scores), borrowed(ranks), borrowed(chunks), borrowed(limits),
    )  # fmt: skip
    target, heads = borrowed(selected), q.shape[2]
    task = fetch_add(counter.ctypes.data, 1)
    while task < heads * len(table):
        which, first, stop = table[task // heads]
        _task(task % heads, which, first, stop, top_k, inputs, sample, scratch, random, batch, target)
        task = fetch_add(counter.ctypes.data, 1)

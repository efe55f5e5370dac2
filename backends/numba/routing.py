"""Routing: scores of each unit against its candidate chunks, and the running top_k, tile by tile."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.dropout import drop_routes
from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, fetch_add, find_above, multiply
from sparsemoc.backends.numba.memory import load_row

#: Centroids to a tile of scores: a strip of them fits the logits' buffer.
TILE = 512


@njit(nogil=True)
def _beats(left, right):  # type: ignore[no-untyped-def]
    """Return whether a score ranks before another; NaN ranks first."""
    return left > right or (np.isnan(left) and not np.isnan(right))


@njit(nogil=True)
def _insert(scores, chunks, count, most, score, chunk):  # type: ignore[no-untyped-def]
    """Insert into a list sorted by rank; an equal score stays behind, so that the lower chunk wins. Return its length."""
    place = min(count, most - 1)
    while place > 0 and _beats(score, scores[place - 1]):
        scores[place], chunks[place] = scores[place - 1], chunks[place - 1]
        place -= 1
    scores[place], chunks[place] = score, chunk
    return min(count + 1, most)


@njit(nogil=True)
def _scan(like, scores, base, address, lo, hi, tile, best, chunks, count, most):  # type: ignore[no-untyped-def]
    """Take the candidates lo ... hi - 1 of a row of scores into its running list; return the list's length."""
    chunk = lo
    while chunk < hi:
        if count == most:
            chunk = tile + find_above(like, address, chunk - tile, hi - tile, best[most - 1])
        for other in range(chunk, min(chunk + 16, hi)):
            score = scores[base + other - tile]
            if count < most or _beats(score, best[most - 1]):
                count = _insert(best, chunks, count, most, score, other)
        chunk += 16
    return count


@njit(nogil=True)
def _mean_query(target, row, q, head, first, stop, code):  # type: ignore[no-untyped-def]
    """Write the float32 mean of the queries first ... stop - 1 to a row of `target`."""
    load_row(target, row, q[0, first, head], code, np.float32(1))
    if stop - first > 1:
        other = np.empty((1, target.shape[1]), np.float32)
        for query in range(first + 1, stop):
            load_row(other, 0, q[0, query, head], code, np.float32(1))
            target[row] += other[0]
        target[row] /= np.float32(stop - first)


@njit(nogil=True)
def _strip_scores(product, strip, scores, rows, panels, depth, lanes, tile, stop):  # type: ignore[no-untyped-def]
    for chunk in range(tile, stop, 2 * lanes):
        vectors = 2 if chunk + lanes < stop else 1
        multiply(
            product, rows, vectors, strip.ctypes.data, panels + chunk * depth * 4, vectors * lanes * 4,
            scores.ctypes.data + (chunk - tile) * 4, LOGIT_ROW * 4, depth, 0,
        )  # fmt: skip


@njit(nogil=True)
def _strip_routes(
    head, units, rows, q, code, most, panels, depth, candidates, sizes, strip, scores, best, chunks, counts
):  # type: ignore[no-untyped-def]
    """Fill the running lists of a strip of units that share their candidates."""
    first, unit_lo, unit_hi, q_start = units
    candidate_lo, candidate_hi = candidates
    lanes, chunk_count, product = sizes
    like = np.float32(0)
    loaded = strip.reshape(-1, ROW)[:, :depth]
    for r in range(rows):
        _mean_query(loaded, r, q, head, unit_lo[first + r] - q_start, unit_hi[first + r] - q_start, code)
    counts[:rows] = 0
    for tile in range(0, chunk_count, TILE):
        stop = min(tile + TILE, chunk_count)
        if candidate_hi[-1] <= tile or candidate_lo[0] >= stop:
            continue
        _strip_scores(product, strip, scores, rows, panels, depth, lanes, tile, stop)
        for r in range(rows):
            address = scores.ctypes.data + r * LOGIT_ROW * 4
            for at in range(len(candidate_lo)):
                lo, hi = max(candidate_lo[at], tile), min(candidate_hi[at], stop)
                if lo < hi:
                    counts[r] = _scan(
                        like, scores, r * LOGIT_ROW, address, lo, hi, tile, best[r], chunks[r], counts[r], most
                    )


@njit(nogil=True)
def _write(selected, head, first, units, rows, chunks, counts, candidates, random, batch):  # type: ignore[no-untyped-def]
    """Sort each unit's routes, apply route dropout, and write them to every member."""
    unit_first, unit_lo, unit_hi, q_start = units
    for r in range(rows):
        unit = first + r
        routes = np.sort(chunks[r, : counts[r]])
        if random[0]:
            routes = drop_routes(random, batch, head, unit_first[unit], routes, candidates)
        for query in range(unit_lo[unit] - q_start, unit_hi[unit] - q_start):
            selected[head, query, : len(routes)] = routes


@njit(nogil=True)
def _task(task, table, heads, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route one (head, piece of a group)."""
    q, code, panels, lanes, group, product = inputs
    unit_first, unit_lo, unit_hi, ptr, candidate_lo, candidate_hi, chunk_count, q_start = sample
    strip, scores, best, chunks, counts = scratch
    head, piece = task % heads, task // heads
    which, first, stop = table[piece]
    span = slice(ptr[which], ptr[which + 1])
    candidates = (candidate_lo[span], candidate_hi[span])
    available = (candidates[1] - candidates[0]).sum()
    most = min(top_k[head], available)
    if most == 0 and not random[0]:
        return
    depth = panels.shape[2]
    address = panels[head // group].ctypes.data
    rows_at_once = strip.shape[0] // ROW
    for at in range(first, stop, rows_at_once):
        rows = min(rows_at_once, stop - at)
        if most == available:
            for r in range(rows):
                counts[r] = 0
                for span_index in range(len(candidates[0])):
                    for chunk in range(candidates[0][span_index], candidates[1][span_index]):
                        chunks[r, counts[r]] = chunk
                        counts[r] += 1
        elif most == 0:
            counts[:rows] = 0
        else:
            _strip_routes(
                head, (at, unit_lo, unit_hi, q_start), rows, q, code, most, address, depth, candidates,
                (lanes, chunk_count, product), strip, scores, best, chunks, counts,
            )  # fmt: skip
        _write(
            selected, head, at, (unit_first, unit_lo, unit_hi, q_start), rows, chunks, counts, candidates, random, batch
        )


@njit(nogil=True, cache=True)
def route_units(counter, table, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route units of a sample until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        table: (pieces, 3) group, first unit, stop: the groups cut in pieces of some hundred units.
        top_k: (heads,).
        inputs: q (., queries, heads, head_dim), its dtype code, centroid panels (kv_heads, padded chunks, depth), lanes,
            query heads to a key head, address of the row product.
        sample: unit_first, unit_lo, unit_hi, candidate_ptr, candidate_lo, candidate_hi, chunks, q_start.
        scratch: the worker's own: strip, scores, and running lists of scores, chunks and their lengths.
        random: (on, key low, key high, batch_start, head_start, off in 2**-16, Poisson table).
        batch: number of the sample in the batch.
        selected: (heads, queries, slots), filled with -1.
    """
    heads = inputs[0].shape[2]
    task = fetch_add(counter.ctypes.data, 1)
    while task < heads * len(table):
        _task(task, table, heads, top_k, inputs, sample, scratch, random, batch, selected)
        task = fetch_add(counter.ctypes.data, 1)

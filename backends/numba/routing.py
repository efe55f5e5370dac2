"""Routing: scores of each unit against its candidate chunks, and the running top_k, tile by tile."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.compiled import kernel
from sparsemoc.backends.numba.dropout import drop_routes
from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, borrowed, fetch_add, multiply
from sparsemoc.backends.numba.memory import fetch_ahead, load_row
from sparsemoc.backends.numba.ranking import GROUP, NO_SCORE, best_rank, places_of, rank_scores

#: Centroids to a tile of scores: a strip of them fits the logits' buffer.
TILE = 512


@njit(nogil=True)
def _insert(best, chunks, count, most, rank, chunk):  # type: ignore[no-untyped-def]
    """Insert into a list, best first, where an equal rank stays behind; return the list's length."""
    place = min(count, most - 1)
    while place > 0 and rank > best[place - 1]:
        best[place], chunks[place] = best[place - 1], chunks[place - 1]
        place -= 1
    best[place], chunks[place] = rank, chunk
    return min(count + 1, most)


@njit(nogil=True)
def _take_best(ranks, base, tile, width, lanes, best, chunks, count, most):  # type: ignore[no-untyped-def]
    """Take a row's best ranks into the list of the `most` best so far; return the list's length.

    Each pass takes the next lower rank. Nothing is written to the row: a narrow store would stall the next pass's
    wide load. Tiles come in ascending order and equal ranks too, so that the lower chunk wins.
    """
    address = ranks.ctypes.data + base * 4
    vectors = -(-width // lanes)
    limit = np.int32(2**31 - 1)
    while True:
        rank = best_rank(address, vectors, limit)
        if rank == NO_SCORE or (count == most and rank <= best[most - 1]):
            return count
        places = places_of(address, -(-width // GROUP), rank)
        if places < 2 << 32:
            count = _insert(best, chunks, count, most, rank, tile + (places & 0xFFFFFFFF))
        else:
            for index in range(width):
                if ranks[base + index] == rank and (count < most or rank > best[most - 1]):
                    count = _insert(best, chunks, count, most, rank, tile + index)
        if count == most and best[most - 1] >= rank:
            # What follows ranks lower still.
            return count
        limit = np.int32(rank - 1)


@njit(nogil=True)
def _rank_row(ranks, base, tile, stop, lanes, candidate_lo, candidate_hi):  # type: ignore[no-untyped-def]
    """Turn a row of scores of the chunks tile ... stop - 1 into ranks, NO_SCORE where a chunk is no candidate."""
    rank_scores(ranks.ctypes.data + base * 4, -(-(stop - tile) // lanes))
    done = 0
    for at in range(len(candidate_lo)):
        lo, hi = candidate_lo[at] - tile, candidate_hi[at] - tile
        if hi <= 0:
            continue
        if lo >= stop - tile:
            break
        for index in range(done, lo):
            ranks[base + index] = NO_SCORE
        done = min(hi, stop - tile)
    for index in range(done, -(-(stop - tile) // GROUP) * GROUP):
        ranks[base + index] = NO_SCORE


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
def _strip_scores(product, strip, scores, rows, panels, depth, lanes, tile, stop):  # type: ignore[no-untyped-def]
    for chunk in range(tile, stop, 2 * lanes):
        vectors = 2 if chunk + lanes < stop else 1
        multiply(
            product, rows, vectors, strip.ctypes.data, panels + chunk * depth * 4, vectors * lanes * 4,
            scores.ctypes.data + (chunk - tile) * 4, LOGIT_ROW * 4, depth, 0,
        )  # fmt: skip


@njit(nogil=True)
def _strip_routes(head, units, first, rows, q, code, most, panels, depth, candidates, sizes, strip, scores, lists):  # type: ignore[no-untyped-def]
    """Fill the lists of a strip of units that share their candidates."""
    unit_lo, unit_hi, q_start = units[1:]
    candidate_lo, candidate_hi = candidates
    lanes, chunk_count, product = sizes
    best, chunks, counts = lists
    ranks = scores.view(np.int32)
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
            base = r * LOGIT_ROW
            _rank_row(ranks, base, tile, stop, lanes, candidate_lo, candidate_hi)
            counts[r] = _take_best(ranks, base, tile, stop - tile, lanes, best[r], chunks[r], counts[r], most)


@njit(nogil=True)
def _write(selected, head, first, units, rows, chunks, counts, candidates, random, batch):  # type: ignore[no-untyped-def]
    """Sort each unit's routes, apply route dropout, and write them to every member."""
    unit_first, unit_lo, unit_hi, q_start = units
    for r in range(rows):
        unit, count = first + r, counts[r]
        for at in range(1, count):
            chunk, place = chunks[r, at], at
            while place > 0 and chunks[r, place - 1] > chunk:
                chunks[r, place] = chunks[r, place - 1]
                place -= 1
            chunks[r, place] = chunk
        lo, hi = unit_lo[unit] - q_start, unit_hi[unit] - q_start
        if random[0]:
            routes = drop_routes(random, batch, head, unit_first[unit], chunks[r, :count], candidates)
            for query in range(lo, hi):
                selected[head, query, : len(routes)] = routes
            continue
        for query in range(lo, hi):
            for slot in range(count):
                selected[head, query, slot] = chunks[r, slot]


@njit(nogil=True)
def _take_all(chunks, counts, rows, candidates):  # type: ignore[no-untyped-def]
    """Fill the lists with every candidate."""
    for r in range(rows):
        count = 0
        for span in range(len(candidates[0])):
            for chunk in range(candidates[0][span], candidates[1][span]):
                chunks[r, count] = chunk
                count += 1
        counts[r] = count


@njit(nogil=True)
def _task(head, which, first, stop, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route the units first ... stop - 1 of a group, for one head."""
    q, code, panels, lanes, group, product = inputs
    units, ptr, candidate_lo, candidate_hi, chunk_count = sample
    strip, scores, best, chunks, counts = scratch
    candidates = (candidate_lo[ptr[which] : ptr[which + 1]], candidate_hi[ptr[which] : ptr[which + 1]])
    available = (candidates[1] - candidates[0]).sum()
    most = min(top_k[head], available)
    depth, address = panels.shape[2], panels[head // group].ctypes.data
    rows_at_once = strip.shape[0] // ROW
    for at in range(first, stop, rows_at_once):
        rows = min(rows_at_once, stop - at)
        if most == available:
            _take_all(chunks, counts, rows, candidates)
        elif most == 0:
            counts[:rows] = 0
        else:
            sizes, lists = (lanes, chunk_count, product), (best, chunks, counts)
            _strip_routes(head, units, at, rows, q, code, most, address, depth, candidates, sizes, strip, scores, lists)
        _write(selected, head, at, units, rows, chunks, counts, candidates, random, batch)


@kernel
def route_units(counter, table, top_k, inputs, sample, scratch, random, batch, selected):  # type: ignore[no-untyped-def]
    """Route units of a sample until none is left; every worker calls this with the same counter.

    Args:
        counter: int64 (1,), 0 at first.
        table: (pieces, 3) group, first unit, stop: the groups cut in pieces of some hundred units.
        top_k: (heads,).
        inputs: q (., queries, heads, head_dim), its dtype code, centroid panels (kv_heads, padded chunks, depth),
            lanes, query heads to a key head, address of the row product.
        sample: (unit_first, unit_lo, unit_hi, q_start), candidate_ptr, candidate_lo, candidate_hi, chunks.
        scratch: the worker's own: strip, scores, and running lists of scores, chunks and their lengths.
        random: (on, key low, key high, batch_start, head_start, off in 2**-16, Poisson table).
        batch: number of the sample in the batch.
        selected: (heads, queries, slots), filled with -1.
    """
    q, code, panels, lanes, group, product = inputs
    (unit_first, unit_lo, unit_hi, q_start), ptr, candidate_lo, candidate_hi, chunk_count = sample
    strip, scores, best, chunks, counts = scratch
    inputs = (borrowed(q), code, borrowed(panels), lanes, group, product)
    units = (borrowed(unit_first), borrowed(unit_lo), borrowed(unit_hi), q_start)
    sample = (units, borrowed(ptr), borrowed(candidate_lo), borrowed(candidate_hi), chunk_count)
    scratch = (borrowed(strip), borrowed(scores), borrowed(best), borrowed(chunks), borrowed(counts))
    target, heads = borrowed(selected), q.shape[2]
    task = fetch_add(counter.ctypes.data, 1)
    while task < heads * len(table):
        which, first, stop = table[task // heads]
        _task(task % heads, which, first, stop, top_k, inputs, sample, scratch, random, batch, target)
        task = fetch_add(counter.ctypes.data, 1)

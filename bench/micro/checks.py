"""The check before a step is timed: a few queries, keys and routes in float64, by the oracle's own rules.

Budgets are those of `sparsemoc.testing.tolerance`. Each check takes what a step gave and raises where it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.micro.sizes import Given
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.sample import Floats, Sample
from sparsemoc.tuning.problems import NamedProblem

#: Places along the stream, queries at each, and keys.
PLACES, WINDOW, KEYS = 4, 2, 6


class WrongError(AssertionError):
    """A step gives a wrong result: its time means nothing."""


def _windows(tokens: int) -> list[int]:
    return [int(start) for start in np.linspace(0, tokens - WINDOW, PLACES)]


def _sample(named: NamedProblem, given: Given, start: int) -> Sample:
    x = given.arrays
    return Sample(named.spec, named.stream, x.q[0, start : start + WINDOW], x.k[0], x.v[0], q_start=start)


def _judge(name: str, off: float, budget: float) -> None:
    if not off <= budget:
        raise WrongError(f"{name} is off by {off:.3g}, the budget is {budget:.3g}")


def plan(named: NamedProblem, compiled: SamplePlan) -> None:
    """Hold chunks, anchors and candidates against the oracle's."""
    bounds = oracle.chunk_bounds(named.spec, named.stream)
    if compiled.chunk_bounds.tolist() != list(bounds):
        raise WrongError(f"the chunks begin at {compiled.chunk_bounds[:9].tolist()} ..., not {list(bounds)[:9]} ...")
    nothing = np.zeros((named.tokens, 1, 1), np.float32)
    for start in _windows(named.tokens):
        sample = Sample(named.spec, named.stream, nothing[:WINDOW], nothing, nothing, q_start=start)
        seen = oracle.mask_of(sample, np.full((1, WINDOW, 1), -1, np.int32))[0]
        allowed = {unit.queries[0]: row for unit, row in zip(sample.units, sample.candidates, strict=True)}
        for number in range(WINDOW):
            position = start + number
            if not np.array_equal(compiled.anchors(position), np.flatnonzero(seen[number])):
                raise WrongError(f"the anchors of query {position} are wrong")
            wanted = np.flatnonzero(allowed[number]).tolist() if number in allowed else []
            if compiled.candidates(position).tolist() != wanted:
                raise WrongError(f"the candidates of query {position} are wrong")


def pool(named: NamedProblem, given: Given, centroids: Floats) -> None:
    """Hold every mean key against float64, by the bound on a float32 sum."""
    bounds = np.array(oracle.chunk_bounds(named.spec, named.stream))
    counts = np.diff(bounds)[:, None, None]
    k = given.arrays.k[0].astype(np.float64)
    means, sizes = (np.add.reduceat(x, bounds[:-1]) / counts for x in (k, np.abs(k)))
    bound = 1.01 * (counts + 2) * tolerance.ROUNDOFF["float32"] * sizes
    _judge("a centroid", float((np.abs(centroids[0].transpose(1, 0, 2) - means) / bound).max()), 1.0)


def routes(named: NamedProblem, given: Given, selected: NDArray[np.int32]) -> None:
    """Hold the chunks of a few queries against the oracle's scores; what rounding cannot tell apart may differ."""
    for start in _windows(named.tokens):
        sample = _sample(named, given, start)
        scores = tolerance.scores_of(sample)
        units = {unit.queries[0]: number for number, unit in enumerate(sample.units)}
        for query in range(WINDOW):
            unit = units.get(query)
            for head in range(named.heads):
                allowed = [] if unit is None else np.flatnonzero(sample.candidates[unit]).tolist()
                row = selected[0, head, start + query]
                taken = row[row >= 0].tolist()
                wanted = min(sample.top_k[head], len(allowed))
                left = [chunk for chunk in allowed if chunk not in taken]
                fits = taken == sorted(set(taken) & set(allowed)) and len(taken) == wanted
                if not fits or (unit is not None and scores.precedes(head, unit, left, taken).any()):
                    raise WrongError(f"query {start + query}, head {head} takes {row.tolist()}, not its best chunks")


def index(selected: NDArray[np.int32], blocks: NDArray[np.int64], got: NDArray[np.int64]) -> None:
    """Hold an index against a sort of all routes.

    Args:
        selected: (heads, queries, slots).
        blocks: bounds of the blocks of queries that are sorted apart.
        got: (routes, 4): head, block, chunk, query of each entry, in its order.
    """
    head, query, slot = np.nonzero(selected >= 0)
    block = np.searchsorted(blocks, query, side="right") - 1
    wanted = np.stack([head, block, selected[head, query, slot], query], 1)
    wanted = wanted[np.lexsort(wanted.T[::-1])]
    if not np.array_equal(got, wanted):
        raise WrongError("the index does not hold every route once, by chunk and query")


def rows(named: NamedProblem, given: Given, results: dict[str, Floats]) -> None:
    """Hold out, lse or dq (as the arrays of a call) of a few queries against float64, given their routes."""
    dtype = str(given.arrays.q.dtype)
    found = {name: [0.0, 0.0] for name in results}
    for start in _windows(named.tokens):
        for query, head, part in _parts(named, given, start):
            d_out, one = given.arrays.d_out[0, query, None, head, None], np.zeros((1, 1))
            mask = np.ones((1, 1, len(part.k)), bool)
            truth = tolerance.dense(part, mask, d_out, one, np.float64)
            plain = tolerance.rounded(tolerance.dense(part, mask, d_out, one, np.float32), dtype)
            size = tolerance.magnitudes(part, mask, d_out, one, tolerance.unit_roundoff(dtype))
            for name, x in results.items():
                got = x[0, None, head, query, None] if name == "lse" else x[0, query, None, head, None]
                right, unit = getattr(truth, name), getattr(size, name)
                off, usual = (tolerance.error(y, right, unit) for y in (got, getattr(plain, name)))
                # `error` passes over what is no number: none is expected here.
                off = off if np.isfinite(got).all() else np.inf
                budget = 2 * usual + tolerance.band(part, name, dtype)
                found[name] = [max(found[name][0], off), max(found[name][1], budget)]
    for name, (off, budget) in found.items():
        _judge(name, off, budget)


def _parts(named: NamedProblem, given: Given, start: int) -> Iterator[tuple[int, int, Sample]]:
    """Yield query, head, and the sample of that query alone with the keys it sees."""
    sample, x = _sample(named, given, start), given.arrays
    seen = oracle.mask_of(sample, given.selected[0, :, start : start + WINDOW])
    for number in range(WINDOW):
        for head in range(named.heads):
            keys, kv = np.flatnonzero(seen[head, number]), head * named.kv_heads // named.heads
            own = sample.q[number, None, head, None]
            yield (
                start + number,
                head,
                Sample(named.spec, named.stream, own, x.k[0, keys, kv, None], x.v[0, keys, kv, None]),
            )


def keys(named: NamedProblem, given: Given, dk: Floats, dv: Floats) -> None:
    """Hold dk and dv of a few keys against float64: sums over every query that sees the key, given out and lse."""
    x, group, scale = given.arrays, named.heads // named.kv_heads, named.head_dim**-0.5
    layout = Layout(given.selected, named.plan())
    dtype = str(x.q.dtype)
    for position in np.linspace(0, named.tokens - 1, KEYS).astype(int).tolist():
        seen = _seers(layout, position)
        for kv in range(named.kv_heads):
            key, value = (array[0, position, kv].astype(np.float64) for array in (x.k, x.v))
            sums = np.zeros((4, named.head_dim))
            for head in range(kv * group, (kv + 1) * group):
                who = np.flatnonzero(seen[head])
                q, d_out, out = (array[0, who, head].astype(np.float64) for array in (x.q, x.d_out, given.out))
                p = np.exp(q @ key * scale - given.lse[0, head, who])
                slopes = p * (d_out @ value - (d_out * out).sum(1)) * scale
                cond = p * (1 + scale * np.abs(q) @ np.abs(key))
                wide = cond * scale * (np.abs(d_out) @ np.abs(value) + (np.abs(d_out) * np.abs(out)).sum(1))
                sums += slopes @ q, p @ d_out, wide @ np.abs(q), cond @ np.abs(d_out)
            terms = np.sqrt([named.head_dim, named.tokens, named.tokens * group]).sum()
            u_out, u_acc = tolerance.ROUNDOFF[dtype], tolerance.unit_roundoff(dtype)
            band = 4 * u_out + u_acc * float(16 + 2 * terms)
            for name, got, truth, size in (("dk", dk, sums[0], sums[2]), ("dv", dv, sums[1], sums[3])):
                off = np.abs(got[0, position, kv].astype(np.float64) - truth) / size
                _judge(name, float(off.max()), band)


def _seers(layout: Layout, position: int) -> NDArray[np.bool_]:
    """Return which queries see a key, (heads, queries): by their anchors, or by a route to its chunk."""
    plan = layout.plan.samples[0]
    chunk = int(np.searchsorted(plan.chunk_bounds, position, side="right")) - 1
    seen: NDArray[np.bool_] = (layout.selected[0] == chunk).any(-1)
    for run, (lo, hi) in enumerate(zip(plan.run_lo, plan.run_hi, strict=True)):
        if any(first <= position < stop for first, stop in plan.static_ranges(run)):
            seen[:, lo:hi] = True
    return seen

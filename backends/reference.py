"""The reference backend: NumPy, one query at a time, as the definition reads. Slow; the example to copy.

A query's keys are gathered once, so that nothing of size (queries, keys) or (queries, chunks) is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.protocol import (
    Capabilities,
    Operation,
    Problem,
    Randomness,
    Result,
    empty_like,
    lse_dtype,
)
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import drop_counts, philox, poisson_table
from sparsemoc.spec.plan import Sample
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.spec.validate import check_numbers

Floats = NDArray[Any]

#: NaN and infinity are inputs like others, whose results are no surprise; and some BLAS libraries raise the flags of
#: vector lanes that they do not use.
_QUIET = np.errstate(all="ignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """The reference has nothing to tune."""


class ReferenceBackend:
    """Readable NumPy. Accumulates in float32, float64 for float64 input."""

    name = "reference"
    capabilities = Capabilities(
        frameworks=("numpy",),
        devices=("cpu",),
        dtypes=("float16", "bfloat16", "float32", "float64"),
        max_head_dim=65536,
        backward=True,
        deterministic=True,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Return None if the backend can run the problem, else the reason with its values."""
        return self.capabilities.refuses(problem)

    def version(self) -> str:
        """Return the versions that results depend on."""
        return f"numpy {np.__version__}"

    def default_config(self, problem: Problem) -> ReferenceConfig:
        """Return the config used where the caller gives none."""
        return ReferenceConfig()

    def search_space(self, problem: Problem, operation: Operation) -> list[ReferenceConfig]:
        """Return the configs worth trying."""
        return [ReferenceConfig()]

    @_QUIET
    def pool(
        self, problem: Problem, k: Floats, key_lengths: NDArray[np.int32] | None, *, config: Any = None
    ) -> NDArray[np.float32]:
        """Return the mean key of each chunk, summed in float64 and rounded once; 0 where a chunk has no key."""
        samples = problem.plan.batch(problem.batch, key_lengths)
        chunks = sum(s.plan.chunks for s in samples) if problem.plan.packed else problem.plan.chunks
        centroids = np.zeros((k.shape[0], problem.kv_heads, chunks, problem.head_dim), np.float32)
        first = 0
        for sample in samples:
            bounds = sample.plan.chunk_bounds
            for chunk, (lo, hi) in enumerate(zip(bounds[:-1], sample.plan.chunk_stop, strict=True)):
                if hi > lo:
                    keys = k[sample.row, sample.k_row + lo : sample.k_row + hi].astype(np.float64)
                    centroids[sample.row, :, first + chunk] = keys.mean(axis=0)
            first += sample.plan.chunks if problem.plan.packed else 0
        return centroids

    @_QUIET
    def route(
        self,
        problem: Problem,
        q: Floats,
        centroids: NDArray[np.float32],
        key_lengths: NDArray[np.int32] | None,
        randomness: Randomness | None,
        *,
        config: Any = None,
    ) -> NDArray[np.int32]:
        """Return `Layout.selected`: the top_k candidates of each unit by score, ties to the lower chunk."""
        plan = problem.plan
        selected = np.full((q.shape[0], problem.heads, plan.q_tokens, plan.slots), -1, np.int32)
        top_k = plan.spec.top_k_of(problem.heads)
        first = 0
        for batch, sample in enumerate(plan.batch(problem.batch, key_lengths)):
            shift = sample.q_row - sample.plan.q_start
            for lo, hi, position, candidates in _units(sample.plan):
                for head in range(problem.heads):
                    unit_q = q[sample.row, lo + shift : hi + shift, head].astype(np.float32).mean(axis=0)
                    means = centroids[sample.row, head // problem.group, first + candidates]
                    routes = _top(unit_q @ means.T, candidates, top_k[head])
                    if randomness is not None:
                        routes = _dropped(plan.spec.dropout, randomness, batch, head, position, routes, candidates)
                    selected[sample.row, head, lo + shift : hi + shift, : len(routes)] = routes
            first += sample.plan.chunks if plan.packed else 0
        return selected

    @_QUIET
    def attend(
        self, problem: Problem, q: Floats, k: Floats, v: Floats, layout: Layout, scale: float, *, config: Any = None
    ) -> Result:
        """Return out and lse by a softmax over each query's gathered keys."""
        dtype = lse_dtype(problem.dtype)
        out = empty_like(q, (*q.shape[:3], problem.v_head_dim), q.dtype)
        lse = np.full((q.shape[0], problem.heads, q.shape[1]), -np.inf, dtype)
        out[...] = 0
        for row, query, head, keys in _rows(layout):
            values = v[row, keys, head // problem.group].astype(dtype)
            logits = k[row, keys, head // problem.group].astype(dtype) @ q[row, query, head].astype(dtype)
            logits *= dtype.type(scale)
            top = logits.max()
            weights = np.exp(logits - top)
            total = weights.sum()
            out[row, query, head] = (weights / total) @ values
            lse[row, head, query] = top + np.log(total)
        return Result(out, lse)

    @_QUIET
    def attend_backward(
        self,
        problem: Problem,
        q: Floats,
        k: Floats,
        v: Floats,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Floats,
        d_lse: Floats | None,
        *,
        config: Any = None,
    ) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv: dS = P * (dO V^T - delta), delta = <dO, out> - d_lse."""
        dtype = lse_dtype(problem.dtype)
        dq, dk, dv = (np.zeros(array.shape, dtype) for array in (q, k, v))
        for row, query, head, keys in _rows(layout):
            kv_head = head // problem.group
            keys_of, values = k[row, keys, kv_head].astype(dtype), v[row, keys, kv_head].astype(dtype)
            own, grad = q[row, query, head].astype(dtype), d_out[row, query, head].astype(dtype)
            weights = np.exp(dtype.type(scale) * (keys_of @ own) - result.lse[row, head, query])
            delta = grad @ result.out[row, query, head].astype(dtype)
            if d_lse is not None:
                delta -= d_lse[row, head, query]
            d_logits = weights * (values @ grad - delta) * dtype.type(scale)
            dq[row, query, head] = d_logits @ keys_of
            dk[row, keys, kv_head] += d_logits[:, None] * own
            dv[row, keys, kv_head] += weights[:, None] * grad
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _units(plan: SamplePlan) -> Iterator[tuple[int, int, int, NDArray[np.int64]]]:
    """Yield (first member, stop, nominal first position, candidates) of each routing unit that has candidates."""
    for lo, hi, first in zip(plan.unit_lo, plan.unit_hi, plan.unit_first, strict=True):
        candidates = plan.candidates(int(lo))
        if len(candidates):
            yield int(lo), int(hi), int(first), candidates


def _top(scores: NDArray[np.float32], candidates: NDArray[np.int64], top_k: int) -> NDArray[np.int64]:
    """Return the candidates with the highest scores, ascending; NaN ranks first, ties go to the lower chunk."""
    rank = np.lexsort((candidates, -scores, ~np.isnan(scores)))
    return np.sort(candidates[rank[:top_k]])


def _dropped(
    dropout: Any,
    randomness: Randomness,
    batch: int,
    head: int,
    position: int,
    routes: NDArray[np.int64],
    candidates: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Apply route dropout to one unit: take away d routes, add m of the other candidates, by their random words."""

    def words(draw: Any) -> tuple[NDArray[np.uint32], ...]:
        counter = (randomness.batch_start + batch, randomness.head_start + head, position, draw)
        return philox(counter, randomness.key)

    def smallest(chunks: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        own = np.stack(words(1 + chunks // 4))[chunks % 4, np.arange(len(chunks))]
        return chunks[np.lexsort((chunks, own))[:count]]

    w0, w1, _, _ = words(0)
    table = poisson_table(dropout.into, dropout.into_max)
    removed, added = drop_counts(w0, w1, np.array(len(routes)), dropout.off, table)
    others = np.setdiff1d(candidates, routes)
    kept = np.setdiff1d(routes, smallest(routes, int(removed)))
    return np.union1d(kept, smallest(others, int(added)))


def _rows(layout: Layout) -> Iterator[tuple[int, int, int, NDArray[np.int64]]]:
    """Yield (batch row, query row, head, key rows) of every query that sees a key, each key once."""
    for sample in layout.samples():
        plan, selected = sample.plan, layout.rows(sample)
        check_numbers(selected, sample)
        for query in range(plan.q_tokens):
            anchors = plan.anchors(plan.q_start + query)
            for head in range(layout.heads):
                keys = _with_routes(sample, anchors, selected[head, query])
                if len(keys):
                    yield sample.row, sample.q_row + query, head, sample.k_row + keys


def _with_routes(sample: Sample, anchors: NDArray[np.int64], chunks: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the union of anchors and the valid keys of the chosen chunks, ascending."""
    plan = sample.plan
    routed = [np.arange(plan.chunk_bounds[c], plan.chunk_stop[c]) for c in chunks[chunks >= 0]]
    return np.union1d(anchors, np.concatenate(routed)) if routed else anchors


BACKEND = ReferenceBackend()

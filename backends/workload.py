"""What a plan asks of a head, in numbers: what the cost models of the backends count from."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparsemoc.spec.plan import Plan
from sparsemoc.spec.sample_plan import Ints, SamplePlan


class Workload(NamedTuple):
    """The work of one sample without padding, for one head. No score is known: routes are as many as there can be.

    Attributes:
        queries, keys, chunks: of the sample; units: routing units that have candidates.
        chunk: keys of a chunk, on average.
        candidates: candidate chunks of such a unit, on average.
        routed: (query, chunk) routes; routed_pairs: (query, key) pairs of them.
        anchored: (query, key) pairs of anchors.
        rectangles: of anchors; rows: queries of all of them together.
        masked: whether some pairs of a rectangle do not count.
    """

    queries: int
    keys: int
    chunks: int
    units: int
    chunk: float
    candidates: float
    routed: int
    routed_pairs: float
    anchored: int
    rectangles: int
    rows: int
    masked: bool

    @property
    def overlap(self) -> float:
        """Rectangles that a query lies in, on average."""
        return self.rows / max(self.queries, 1)

    @property
    def span(self) -> float:
        """Keys that a query sees of a rectangle, on average."""
        return self.anchored / max(self.rows, 1)

    @property
    def choosing(self) -> float:
        """Share of the queries that choose a chunk, on average over the chunks."""
        return self.routed / max(self.queries * self.chunks, 1)


@lru_cache(maxsize=64)
def workloads(plan: Plan) -> tuple[Workload, ...]:
    """Return the workload of each sample: one that the batch shares, or one for each packed sample."""
    return tuple(_workload(plan, sample) for sample in plan.samples)


def _workload(plan: Plan, sample: SamplePlan) -> Workload:
    found, chunk = sample.anchor_rectangles, sample.k_tokens / sample.chunks
    members = _sums(sample.unit_hi - sample.unit_lo, sample.group_lo, sample.group_hi)
    spans = sample.candidate_hi - sample.candidate_lo
    candidates = _sums(spans, sample.candidate_ptr[:-1], sample.candidate_ptr[1:])
    routed = int((members * np.minimum(candidates, plan.spec.max_top_k)).sum())
    units = int((sample.group_hi - sample.group_lo).sum())
    return Workload(
        queries=sample.q_tokens,
        keys=sample.k_tokens,
        chunks=sample.chunks,
        units=units,
        chunk=chunk,
        candidates=float(((sample.group_hi - sample.group_lo) * candidates).sum()) / max(units, 1),
        routed=routed,
        routed_pairs=routed * chunk,
        anchored=found.pairs(sample.reach, sample.token_causal),
        rectangles=len(found),
        rows=int((found.q_hi - found.q_lo).sum()),
        masked=sample.token_causal or sample.reach >= 0,
    )


def _sums(values: Ints, lo: Ints, hi: Ints) -> Ints:
    """Return the sum of values[lo[i] : hi[i]] for each i."""
    total: Ints = np.concatenate([[0], np.cumsum(values)])
    return total[hi] - total[lo]

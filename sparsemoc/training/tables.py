"""What a plan says of its chunks and queries, as arrays on the device that holds the layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.routing import Block
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.training.array_ops import ArrayOps

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tables:
    """The plan of a sample without padding, for chunk numbers that are counted from 1: 0 is "no chunk", which is empty.

    Attributes:
        parts: (first, stop, shot) of the stretches of the query axis that may have routes; 0 is no shot.
        shots: number of shots.
        chunk_lo, chunk_hi: (chunks + 1,) positions of each chunk.
        chunk_segment, segment_lo: its segment, and where that starts.
        chunk_shot: (chunks + 1,) shot of each chunk, counted from 1 too.
        overlap: the anchors, where they may hold a part of a routed chunk.
    """

    parts: tuple[tuple[int, int, int], ...]
    shots: int
    chunk_lo: Any
    chunk_hi: Any
    chunk_segment: Any
    segment_lo: Any
    chunk_shot: Any
    overlap: Overlap | None

    @classmethod
    def of(cls, plan: SamplePlan, ops: ArrayOps) -> Tables:
        """Put the tables of a plan on a device."""
        bounds, stream = plan.chunk_bounds, plan.stream
        segment = np.searchsorted(stream.bounds, bounds[:-1], side="right") - 1
        shots = np.array([0 if shot is None else shot + 1 for shot in stream.shots], np.int64)
        may_overlap = plan.splits_chunks or isinstance(plan.spec.unit, Block)
        return cls(
            parts=tuple(_parts(plan, shots)),
            shots=int(shots.max()),
            chunk_lo=ops.own(_from_one(bounds[:-1])),
            chunk_hi=ops.own(_from_one(bounds[1:])),
            chunk_segment=ops.own(_from_one(segment)),
            segment_lo=ops.own(np.array(stream.bounds[:-1], np.int64)),
            chunk_shot=ops.own(_from_one(shots[segment])),
            overlap=Overlap.of(plan, ops) if may_overlap else None,
        )

    def stops(self, ops: ArrayOps, lengths: Any) -> Any:
        """Return the end of the valid keys of each chunk, (rows, chunks + 1), for int64 lengths (rows, segments)."""
        ends = (self.segment_lo + lengths)[:, self.chunk_segment]
        return ops.numbers.minimum(ops.numbers.maximum(ends, self.chunk_lo), self.chunk_hi)


@dataclass(frozen=True, eq=False)
class Overlap:
    """The anchors of each query run, to count the keys of a route that are anchors already.

    Attributes:
        anchor_lo, anchor_hi: (ranges, runs) static anchor ranges of each run, filled up with empty ones; one at least.
        run: (queries,) run of each query.
        position: (queries,) its stream position.
        reach: half-width of the token window, -1 for none.
    """

    anchor_lo: Any
    anchor_hi: Any
    run: Any
    position: Any
    reach: int

    @classmethod
    def of(cls, plan: SamplePlan, ops: ArrayOps) -> Overlap:
        """Put the anchors of a plan on a device."""
        counts = np.diff(plan.anchor_ptr)
        lo, hi = np.zeros((2, counts.max(initial=1), len(counts)), np.int64)
        run = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(run)) - plan.anchor_ptr[run]
        lo[number, run], hi[number, run] = plan.anchor_lo, plan.anchor_hi
        position = np.arange(plan.q_start, plan.q_start + plan.q_tokens)
        of_query = np.searchsorted(plan.run_lo, position, side="right") - 1
        return cls(ops.own(lo), ops.own(hi), ops.own(of_query), ops.own(position), plan.reach)

    def static(self, ops: ArrayOps, lo: Any, stop: Any) -> Any:
        """Return how many valid keys of each chunk each run has as static anchors: (rows, runs, chunks + 1)."""
        return self._shared(ops, lo, stop[:, None], self.anchor_lo[..., None], self.anchor_hi[..., None])

    def held(self, ops: ArrayOps, index: Any, first: int, static: Any, lo: Any, stop: Any) -> Any:
        """Return how many keys of routes are anchors of their query, int64 (rows, heads).

        Args:
            ops: the device's operations.
            index: int64 (rows, heads, queries, slots) chosen chunks, counted from 1.
            first: first of these queries on the query axis.
            static: what `static` gave for `stop`.
            lo: (chunks + 1,) start of each chunk.
            stop: (rows, chunks + 1) end of its valid keys, or (1, chunks + 1) for rows alike.
        """
        queries = slice(first, first + index.shape[2])
        run, width = self.run[queries], stop.shape[-1]
        row = ops.arange(stop.shape[0]).reshape(-1, 1, 1, 1)
        total = ops.take(static, index + run[:, None] * width + row * (static.shape[1] * width)).sum((-2, -1))
        if self.reach < 0:
            return total
        position = self.position[queries][:, None]
        near_lo = ops.numbers.maximum(ops.take(lo, index), position - self.reach)
        near_hi = ops.numbers.minimum(ops.take(stop, index + row * width), position + self.reach + 1)
        near = ops.numbers.clip(near_hi - near_lo, 0, None)
        both = self._shared(ops, near_lo, near_hi, self.anchor_lo[:, run][..., None], self.anchor_hi[:, run][..., None])
        return total + (near - both).sum((-2, -1))

    @staticmethod
    def _shared(ops: ArrayOps, lo: Any, hi: Any, anchor_lo: Any, anchor_hi: Any) -> Any:
        """Return how many of lo ... hi - 1 the anchor ranges, stacked on their first axis, hold in all."""
        shared = 0 * (hi - lo)
        for one_lo, one_hi in zip(anchor_lo, anchor_hi, strict=True):
            overlap = ops.numbers.minimum(hi, one_hi) - ops.numbers.maximum(lo, one_lo)
            shared = shared + ops.numbers.clip(overlap, 0, None)
        return shared


def _from_one(values: NDArray[Any]) -> Ints:
    return np.concatenate([[0], values]).astype(np.int64)


def _parts(plan: SamplePlan, shots: Ints) -> Iterator[tuple[int, int, int]]:
    for index, segment in enumerate(plan.stream.segments):
        first = max(plan.stream.bounds[index] - plan.q_start, 0)
        stop = min(plan.stream.bounds[index + 1] - plan.q_start, plan.q_tokens)
        if first < stop and segment.kind not in plan.spec.dense_queries:
            yield first, stop, int(shots[index])

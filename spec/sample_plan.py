"""SamplePlan: a spec applied to one sample's lengths, as flat arrays that every backend reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.rectangles import Rectangles, rectangles
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """What every query of one sample may see, before any score is known. All positions are stream positions.

    A query run is a stretch of queries of one chunk (and one frame where an anchor speaks of frames) that share
    their static anchor ranges. A routing unit is one query, or the present members of one block. A group is a
    stretch of units that share their candidates.

    Attributes:
        spec, stream: what was compiled.
        q_start, q_tokens: the query range, stream positions q_start ... q_start + q_tokens - 1.
        lengths: valid tokens of each segment; without padding, the segments' own.
        chunk_bounds: (chunks + 1,) chunk c holds the positions chunk_bounds[c] ... chunk_bounds[c + 1] - 1.
        chunk_stop: (chunks,) end of the valid keys of each chunk; chunk_bounds[c] where it has none.
        run_lo, run_hi: (runs,) valid queries of each run, ascending.
        run_chunk: (runs,) their chunk.
        run_dense: (runs,) whether they attend to every key and have no routes.
        anchor_ptr, anchor_lo, anchor_hi: static anchor ranges of run r are entries anchor_ptr[r] ...
            anchor_ptr[r + 1] - 1: disjoint, ascending, valid keys only.
        reach: half-width of the token window, -1 for none: query i also sees the valid keys i - reach ... i + reach.
        token_causal: whether no query sees a key later than itself.
        unit_first: (units,) nominal first position of each routing unit.
        unit_lo, unit_hi: (units,) its present, valid members.
        group_lo, group_hi: (groups,) units of each group.
        candidate_ptr, candidate_lo, candidate_hi: candidate chunks of group g, as ranges of chunk numbers.
    """

    spec: RoutingSpec
    stream: Stream
    q_start: int
    q_tokens: int
    lengths: tuple[int, ...]
    chunk_bounds: Ints
    chunk_stop: Ints
    run_lo: Ints
    run_hi: Ints
    run_chunk: Ints
    run_dense: NDArray[np.bool_]
    anchor_ptr: Ints
    anchor_lo: Ints
    anchor_hi: Ints
    reach: int
    token_causal: bool
    unit_first: Ints
    unit_lo: Ints
    unit_hi: Ints
    group_lo: Ints
    group_hi: Ints
    candidate_ptr: Ints
    candidate_lo: Ints
    candidate_hi: Ints

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.chunk_stop)

    @property
    def chunk_lengths(self) -> Ints:
        """Valid keys of each chunk."""
        return self.chunk_stop - self.chunk_bounds[:-1]

    @property
    def k_tokens(self) -> int:
        """Keys of the sample, padding included."""
        return self.stream.tokens

    def with_lengths(self, lengths: tuple[int, ...]) -> SamplePlan:
        """Return the plan of the same sample with only the first `lengths[s]` tokens of each segment valid.

        Values clamp to [0, tokens of the segment].
        """
        from sparsemoc.spec.compile import compile_sample

        clamped = tuple(min(max(int(n), 0), s.tokens) for n, s in zip(lengths, self.stream.segments, strict=True))
        return compile_sample(self.spec, self.stream, self.q_start, self.q_tokens, clamped)

    def run_of(self, position: int) -> int:
        """Return the run that holds a query position, -1 for a padded one."""
        run = int(np.searchsorted(self.run_lo, position, side="right")) - 1
        return run if run >= 0 and position < self.run_hi[run] else -1

    def static_ranges(self, run: int) -> list[tuple[int, int]]:
        """Return the static anchor ranges of a run."""
        part = slice(self.anchor_ptr[run], self.anchor_ptr[run + 1])
        return list(zip(self.anchor_lo[part].tolist(), self.anchor_hi[part].tolist(), strict=True))

    def anchors(self, position: int) -> Ints:
        """Return A(i): the keys that the query at a stream position always sees, ascending."""
        run = self.run_of(position)
        seen = np.zeros(self.k_tokens, bool)
        if run >= 0:
            for lo, hi in self.static_ranges(run):
                seen[lo:hi] = True
            if self.reach >= 0:
                near = slice(max(0, position - self.reach), position + self.reach + 1)
                seen[near] |= self.valid_keys[near]
            if self.token_causal:
                seen[position + 1 :] = False
        return np.flatnonzero(seen)

    def candidates(self, position: int) -> Ints:
        """Return C(i): the chunks that the routing unit of a query may pick, ascending; none for dense queries."""
        run = self.run_of(position)
        unit = int(np.searchsorted(self.unit_lo, position, side="right")) - 1
        if run < 0 or self.run_dense[run] or unit < 0 or position >= self.unit_hi[unit]:
            return np.zeros(0, np.int64)
        group = int(np.searchsorted(self.group_lo, unit, side="right")) - 1
        if group < 0 or unit >= self.group_hi[group]:
            return np.zeros(0, np.int64)
        part = slice(self.candidate_ptr[group], self.candidate_ptr[group + 1])
        spans = zip(self.candidate_lo[part], self.candidate_hi[part], strict=True)
        return np.concatenate([np.arange(lo, hi) for lo, hi in spans])

    @cached_property
    def valid_keys(self) -> NDArray[np.bool_]:
        """(k_tokens,) whether each position holds a valid token."""
        valid = np.zeros(self.k_tokens, bool)
        for start, length in zip(self.stream.bounds[:-1], self.lengths, strict=True):
            valid[start : start + length] = True
        return valid

    @cached_property
    def splits_chunks(self) -> bool:
        """Whether anchors may hold a part of a chunk that is a candidate: then a route must leave that part out."""
        inner = np.setdiff1d(np.concatenate([self.anchor_lo, self.anchor_hi]), self.chunk_bounds)
        return self.reach >= 0 or bool(np.setdiff1d(inner, self.chunk_stop).size)

    @cached_property
    def anchor_rectangles(self) -> Rectangles:
        """Every anchored (query, key) pair, as disjoint rectangles."""
        return rectangles(self)

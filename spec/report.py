"""What a layout holds: pairs, chunk load, and where routes go from shot to shot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.checks import real
from sparsemoc.spec.errors import LayoutError
from sparsemoc.spec.plan import Sample
from sparsemoc.spec.sample_plan import Ints, SamplePlan

if TYPE_CHECKING:
    from sparsemoc.spec.layout import Layout


@dataclass(frozen=True)
class LoopClosures:
    """Shots that feed each other, by routed edges whose share of queries exceeds the threshold.

    Attributes:
        mutual: for each head the pairs (a, b), a < b, where a routes to b and b to a.
        components: for each head the strongly connected sets of two or more shots.
    """

    mutual: tuple[tuple[tuple[int, int], ...], ...]
    components: tuple[tuple[tuple[int, ...], ...], ...]

    def __bool__(self) -> bool:
        return any(self.components)


@dataclass(frozen=True, eq=False)
class Report:
    """What was routed where. Density and pairs count anchors and dense rows; the rest counts routed edges.

    Attributes:
        pairs: (head, query, key) triples attended to.
        density: pairs / (heads * L_q * L_k), valid queries and keys alone, the product summed over the batch.
        chunk_load: (heads, chunks) queries that chose each chunk, summed over the batch.
        dead_chunks: (heads,) for each head the chunks that are a candidate of some query and that no query chose.
        shot_matrix: (heads, shots, shots) share of the routing queries of shot a with a route to shot b. Shots stand
            in order of first appearance; a global text segment is none.
        loop_closures: shots that feed each other above the threshold.
        threshold: the share above which an edge counts.
    """

    pairs: int
    density: float
    chunk_load: NDArray[np.int64]
    dead_chunks: tuple[tuple[int, ...], ...]
    shot_matrix: NDArray[np.float64]
    loop_closures: LoopClosures
    threshold: float


def report(layout: Layout, threshold: float) -> Report:
    """Return the report of a layout whose samples share one stream.

    Raises:
        LayoutError: a packed layout of unlike streams, whose chunks and shots have nothing in common.
        SpecError: a threshold outside [0, 1].
    """
    threshold = real(threshold, "report: threshold", least=0.0, most=1.0)
    if len(set(layout.plan.streams)) > 1:
        raise LayoutError(
            "report: the samples must share one stream, got unlike streams. Hint: report them one by one."
        )
    heads, chunks = layout.heads, layout.plan.chunks
    load = np.zeros((heads, chunks), np.int64)
    reachable = np.zeros(chunks, bool)
    shots = 1 + max((s for s in layout.plan.streams[0].shots if s is not None), default=-1)
    hits, queries = np.zeros((heads, shots, shots)), np.zeros(shots)
    for sample in layout.samples():
        selected = layout.rows(sample)
        for head in range(heads):
            load[head] += np.bincount(selected[head][selected[head] >= 0], minlength=chunks)
        for lo, hi in zip(sample.plan.candidate_lo, sample.plan.candidate_hi, strict=True):
            reachable[lo:hi] = True
        _count_shots(sample.plan, selected, hits, queries)
    dead = tuple(tuple(np.flatnonzero(reachable & (load[head] == 0)).tolist()) for head in range(heads))
    matrix = hits / np.maximum(queries, 1)[None, :, None]
    return Report(layout.pairs(), layout.density(), load, dead, matrix, _loops(matrix, threshold), threshold)


def _count_shots(
    plan: SamplePlan, selected: NDArray[np.int32], hits: NDArray[np.float64], queries: NDArray[np.float64]
) -> None:
    """Add for each shot pair how many queries of the one have a route into the other."""
    numbers = np.array([-1 if s is None else s for s in plan.stream.shots])
    segment = np.searchsorted(plan.stream.bounds, plan.chunk_bounds[:-1], side="right") - 1
    shot_of_chunk = numbers[segment]
    for run in np.flatnonzero(~plan.run_dense):
        shot = shot_of_chunk[plan.run_chunk[run]]
        if shot < 0:
            continue
        rows = selected[:, plan.run_lo[run] - plan.q_start : plan.run_hi[run] - plan.q_start]
        queries[shot] += rows.shape[1]
        target = np.where(rows >= 0, shot_of_chunk[rows], -1)
        for other in np.unique(target[target >= 0]):
            hits[:, shot, other] += (target == other).any(-1).sum(-1)


def _loops(matrix: NDArray[np.float64], threshold: float) -> LoopClosures:
    mutual, components = [], []
    for head in matrix:
        edge = head > threshold
        np.fill_diagonal(edge, False)
        pairs = np.argwhere(np.triu(edge & edge.T))
        mutual.append(tuple((int(a), int(b)) for a, b in pairs))
        components.append(_components(edge))
    return LoopClosures(tuple(mutual), tuple(components))


def _components(edge: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Return the strongly connected sets of two or more nodes, by the transitive closure (shots are few)."""
    reach = edge.copy()
    for middle in range(len(edge)):
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1]
    together = reach & reach.T
    found = {tuple(np.flatnonzero(row).tolist()) for row in together if row.any()}
    return tuple(sorted(group for group in found if len(group) > 1))


def pairs(layout: Layout) -> int:
    """Return the attended (head, query, key) triples without a quadratic array: anchors, plus routes outside them."""
    total = 0
    for sample in layout.samples():
        plan = sample.plan
        total += layout.heads * plan.anchor_rectangles.pairs(plan.reach, plan.token_causal)
        total += _routed_pairs(sample, layout.rows(sample))
    return total


def _routed_pairs(sample: Sample, selected: NDArray[np.int32]) -> int:
    plan = sample.plan
    return sum(
        int(new_keys(plan, run, query, plan.chunk_bounds[chunk], plan.chunk_stop[chunk]).sum())
        for run, _, query, chunk in routes(plan, selected)
    )


def routes(plan: SamplePlan, selected: NDArray[np.int32]) -> Iterator[tuple[int, Ints, Ints, Ints]]:
    """Yield for each run that has routes its number, and head, query (stream position) and chunk of each route."""
    for run in np.flatnonzero(~plan.run_dense).tolist():
        rows = selected[:, plan.run_lo[run] - plan.q_start : plan.run_hi[run] - plan.q_start]
        head, query, slot = np.nonzero(rows >= 0)
        if len(head):
            yield run, head, plan.run_lo[run] + query, rows[head, query, slot].astype(np.int64)


def new_keys(plan: SamplePlan, run: int, query: Ints, lo: Ints, hi: Ints) -> Ints:
    """Return for each query of a run how many of the valid keys lo ... hi - 1 are no anchor of it."""
    near_lo, near_hi = np.maximum(lo, query - plan.reach), np.minimum(hi, query + plan.reach + 1)
    if plan.reach < 0:
        near_lo, near_hi = hi, hi
    new: Ints = hi - lo - np.maximum(near_hi - near_lo, 0)
    for anchor_lo, anchor_hi in plan.static_ranges(run):
        new -= np.maximum(np.minimum(hi, anchor_hi) - np.maximum(lo, anchor_lo), 0)
        new += np.maximum(np.minimum(near_hi, anchor_hi) - np.maximum(near_lo, anchor_lo), 0)
    return new

"""Compile a spec and one sample's lengths to a SamplePlan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.anchor_ranges import AnchorRanges
from sparsemoc.spec.ranges import Range, Ranges, intersect, subtract, union
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.sample_plan import Ints, SamplePlan
from sparsemoc.spec.stream import Stream


class _Run(NamedTuple):
    lo: int
    hi: int
    chunk: int
    dense: bool
    anchors: Ranges


class _Grid(NamedTuple):
    """The key side: chunks with their valid ends, and which of them may be routed to."""

    starts: Ints
    stops: Ints
    routable: Ranges
    valid: Ranges


class _Stretch(NamedTuple):
    """Neighbouring queries, or units, that share their candidates."""

    lo: int
    hi: int
    candidates: Ranges


class _Units(NamedTuple):
    first: Ints
    lo: Ints
    hi: Ints


@lru_cache(maxsize=256)
def compile_sample(
    spec: RoutingSpec, stream: Stream, q_start: int, q_tokens: int, lengths: tuple[int, ...]
) -> SamplePlan:
    """Return the plan of one sample, from a cache where the same was asked for before."""
    bounds = np.array(spec.chunks.cuts(stream), np.int64)
    segment_of_chunk = np.searchsorted(stream.bounds, bounds[:-1], side="right") - 1
    anchors = AnchorRanges(spec, stream, bounds)
    grid = _key_side(spec, stream, bounds, segment_of_chunk, lengths)
    runs = list(_runs(spec, stream, anchors, bounds, segment_of_chunk, (q_start, q_start + q_tokens), lengths, grid))
    stretches = [part for run in runs for part in _stretches(spec, run, grid, anchors.reach)]
    split = _block_units(spec.unit.n, stretches, bounds) if isinstance(spec.unit, Block) else _token_units(stretches)
    units, groups = split[0], _groups(split[1])
    anchor_ptr, anchor_lo, anchor_hi = _flat([run.anchors for run in runs])
    candidate_ptr, candidate_lo, candidate_hi = _flat([group.candidates for group in groups])
    return SamplePlan(
        spec=spec,
        stream=stream,
        q_start=q_start,
        q_tokens=q_tokens,
        lengths=lengths,
        chunk_bounds=_frozen(bounds),
        chunk_stop=_frozen(grid.stops),
        run_lo=_column([run.lo for run in runs]),
        run_hi=_column([run.hi for run in runs]),
        run_chunk=_column([run.chunk for run in runs]),
        run_dense=np.array([run.dense for run in runs], bool),
        anchor_ptr=anchor_ptr,
        anchor_lo=anchor_lo,
        anchor_hi=anchor_hi,
        reach=anchors.reach,
        token_causal=spec.causal == "token",
        unit_first=_column(units.first),
        unit_lo=_column(units.lo),
        unit_hi=_column(units.hi),
        group_lo=_column([group.lo for group in groups]),
        group_hi=_column([group.hi for group in groups]),
        candidate_ptr=candidate_ptr,
        candidate_lo=candidate_lo,
        candidate_hi=candidate_hi,
    )


def _key_side(
    spec: RoutingSpec, stream: Stream, bounds: Ints, segment_of_chunk: NDArray[np.intp], lengths: tuple[int, ...]
) -> _Grid:
    valid_end = np.array([start + n for start, n in zip(stream.bounds[:-1], lengths, strict=True)], np.int64)
    stops = np.clip(valid_end[segment_of_chunk], bounds[:-1], bounds[1:])
    kinds = [stream.segments[s].kind for s in segment_of_chunk]
    wanted = [spec.may_route_to(kind) for kind in kinds]
    routable = union((c, c + 1) for c in range(len(stops)) if wanted[c] and stops[c] > bounds[c])
    valid = union((start, start + n) for start, n in zip(stream.bounds[:-1], lengths, strict=True))
    return _Grid(bounds[:-1], stops, routable, valid)


def _runs(
    spec: RoutingSpec,
    stream: Stream,
    anchors: AnchorRanges,
    bounds: Ints,
    segment_of_chunk: NDArray[np.intp],
    queries: Range,
    lengths: tuple[int, ...],
    grid: _Grid,
) -> Iterator[_Run]:
    """Cut the valid queries at chunk bounds, and at frames where an anchor speaks of them."""
    for chunk in range(len(bounds) - 1):
        segment = int(segment_of_chunk[chunk])
        start = stream.bounds[segment]
        lo = max(int(bounds[chunk]), queries[0])
        hi = min(int(bounds[chunk + 1]), queries[1], start + lengths[segment])
        by_frame = anchors.by_frame and stream.segments[segment].grid is not None
        dense = stream.segments[segment].kind in spec.dense_queries
        step = stream.segments[segment].frame_tokens
        while lo < hi:
            frame = (lo - start) // step if by_frame else 0
            stop = min(hi, start + (frame + 1) * step) if by_frame else hi
            yield _Run(lo, stop, chunk, dense, intersect(anchors.of(segment, frame, chunk), grid.valid))
            lo = stop


def _candidates(spec: RoutingSpec, run: _Run, grid: _Grid) -> Ranges:
    """Return the candidate chunks of a run, token windows apart: routable, causal, not covered whole."""
    if run.dense:
        return ()
    allowed = grid.routable if spec.causal == "none" else intersect(grid.routable, ((0, run.chunk),))
    covered = []
    for lo, hi in run.anchors:
        first = int(np.searchsorted(grid.starts, lo, side="left"))
        covered.append((first, int(np.searchsorted(grid.stops, hi, side="right"))))
    return subtract(allowed, union(covered))


def _stretches(spec: RoutingSpec, run: _Run, grid: _Grid, reach: int) -> Iterator[_Stretch]:
    """Cut a run where its token windows begin or cease to cover a chunk whole."""
    candidates = _candidates(spec, run, grid)
    covered = list(_covered_by_window(run, candidates, grid, reach)) if reach >= 0 else []
    cuts = {run.lo, run.hi}
    for _, first, stop in covered:
        cuts |= {max(run.lo, first), min(run.hi, stop)}
    for lo, hi in pairwise(sorted(cuts)):
        gone = union((chunk, chunk + 1) for chunk, first, stop in covered if first <= lo and hi <= stop)
        yield _Stretch(lo, hi, subtract(candidates, gone))


def _covered_by_window(run: _Run, candidates: Ranges, grid: _Grid, reach: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk, first, stop): queries first ... stop - 1 see all of the chunk by anchors and window together."""
    near_lo = int(np.searchsorted(grid.stops, run.lo - reach, side="right"))
    near_hi = int(np.searchsorted(grid.starts, run.hi + reach, side="left"))
    for chunk_lo, chunk_hi in intersect(candidates, ((near_lo, near_hi),) if near_lo < near_hi else ()):
        for chunk in range(chunk_lo, chunk_hi):
            rest = subtract([(int(grid.starts[chunk]), int(grid.stops[chunk]))], run.anchors)
            first, stop = rest[-1][1] - 1 - reach, rest[0][0] + reach + 1
            if max(first, run.lo) < min(stop, run.hi):
                yield chunk, first, stop


def _token_units(stretches: list[_Stretch]) -> tuple[_Units, list[_Stretch]]:
    """Return every query as a unit of its own, and the groups as (first unit, stop, candidates)."""
    position = np.concatenate([np.arange(s.lo, s.hi) for s in stretches] or [np.zeros(0, np.int64)])
    ends = np.cumsum([0] + [s.hi - s.lo for s in stretches]).tolist()
    by_unit = [_Stretch(lo, hi, s.candidates) for (lo, hi), s in zip(pairwise(ends), stretches, strict=True)]
    return _Units(position, position, position + 1), by_unit


def _block_units(size: int, stretches: list[_Stretch], bounds: Ints) -> tuple[_Units, list[_Stretch]]:
    """Return the present members of each block; a block's candidates are those that any member has."""
    blocks: dict[int, tuple[int, int, Ranges]] = {}
    for lo, hi, candidates in stretches:
        start = int(bounds[np.searchsorted(bounds, lo, side="right") - 1])
        for first in range(start + (lo - start) // size * size, hi, size):
            before = blocks.get(first, (max(lo, first), 0, ()))
            blocks[first] = (before[0], min(hi, first + size), union(before[2] + candidates))
    table = np.array([(first, lo, hi) for first, (lo, hi, _) in blocks.items()], np.int64).reshape(-1, 3)
    by_unit = [_Stretch(index, index + 1, block[2]) for index, block in enumerate(blocks.values())]
    return _Units(table[:, 0], table[:, 1], table[:, 2]), by_unit


def _groups(by_unit: list[_Stretch]) -> list[_Stretch]:
    """Join neighbours that share their candidates; drop units that have none."""
    groups: list[_Stretch] = []
    for part in by_unit:
        if groups and groups[-1].hi == part.lo and groups[-1].candidates == part.candidates:
            groups[-1] = groups[-1]._replace(hi=part.hi)
        elif part.candidates:
            groups.append(part)
    return groups


def _flat(lists: list[Ranges]) -> tuple[Ints, Ints, Ints]:
    """Return lists of ranges as (ptr, lo, hi) arrays."""
    ptr = np.cumsum([0] + [len(ranges) for ranges in lists])
    flat = [span for ranges in lists for span in ranges]
    return _column(ptr), _column([lo for lo, _ in flat]), _column([hi for _, hi in flat])


def _column(values: object) -> Ints:
    return _frozen(np.array(values, np.int64))


def _frozen(array: Ints) -> Ints:
    array.flags.writeable = False
    return array

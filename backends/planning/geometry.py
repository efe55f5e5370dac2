"""The plan as flat int32 tables, which the kernels read on the device.

A packed batch is one long stream here: positions, chunks, runs and segments run on from sample to sample, and the
tables keep each sample to itself. The tables hold no lengths of a call: padding is applied on the device, to the ends
of chunks and segments, so that nothing waits for the host. "Row" is a row of the query axis, position - q_start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import Block
from sparsemoc.spec.sample_plan import SamplePlan

Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Keys:
    """The key side.

    Attributes:
        chunk_lo, chunk_hi: (chunks,) positions of each chunk, padding included.
        chunk_segment: (chunks,) its segment.
        segment_lo, segment_tokens: (segments,) first position and tokens of each segment.
        segment_entry: (segments,) its place in a row-major (samples, most segments) `key_lengths`.
    """

    chunk_lo: Ints
    chunk_hi: Ints
    chunk_segment: Ints
    segment_lo: Ints
    segment_tokens: Ints
    segment_entry: Ints


@dataclass(frozen=True, eq=False)
class Runs:
    """Stretches of queries that share chunk, anchors and candidates (token windows apart).

    Attributes:
        run_lo, run_hi: (runs,) rows.
        run_chunk: (runs,) own chunk.
        run_base: (runs,) chunk number that the sample's `selected` calls 0.
        anchor_ptr, anchor_lo, anchor_hi: static anchor ranges of run r are entries anchor_ptr[r] ... anchor_ptr[r + 1]
            - 1, in positions, disjoint and ascending, padding included.
        allowed: (runs, words) bit c % 32 of word c // 32: chunk c is routable and causal for the run; none if dense.
        run_of_row: (rows,) the run of each row.
    """

    run_lo: Ints
    run_hi: Ints
    run_chunk: Ints
    run_base: Ints
    anchor_ptr: Ints
    anchor_lo: Ints
    anchor_hi: Ints
    allowed: Ints
    run_of_row: Ints


@dataclass(frozen=True, eq=False)
class Units:
    """Routing units: single rows, or the rows of a block that are in the query range.

    Attributes:
        unit_row, unit_rows: (units,) first row and number of rows, padding included.
        unit_position: (units,) nominal first position within the sample: the counter of route dropout.
        unit_sample: (units,) sample of a packed batch, else 0.
        unit_run, unit_runs: (units,) first run, and number of runs, that the unit's rows touch.
    """

    unit_row: Ints
    unit_rows: Ints
    unit_position: Ints
    unit_sample: Ints
    unit_run: Ints
    unit_runs: Ints


@dataclass(frozen=True, eq=False)
class Rectangles:
    """Every anchored pair once: rows q_lo ... q_hi - 1 against positions k_lo ... k_hi - 1 of one segment.

    Attributes:
        q_lo, q_hi: (rectangles,) rows.
        k_lo, k_hi: (rectangles,) positions, padding included.
        segment: (rectangles,) segment of the keys; rectangles are cut by segments only where the call has padding.
        banded: (rectangles,) 1 where only the pairs within reach of the token window count.
    """

    q_lo: Ints
    q_hi: Ints
    k_lo: Ints
    k_hi: Ints
    segment: Ints
    banded: Ints


@dataclass(frozen=True, eq=False)
class Geometry:
    """A plan as tables, before any tile size is chosen."""

    plan: Plan
    keys: Keys
    runs: Runs
    units: Units
    rectangles: Rectangles
    rows: int
    q_start: int
    reach: int
    token_causal: bool
    splits_chunks: bool

    @property
    def chunks(self) -> int:
        """Chunks of all samples together."""
        return len(self.keys.chunk_lo)

    @cached_property
    def most_chunk(self) -> int:
        """Keys of the longest chunk."""
        return int((self.keys.chunk_hi - self.keys.chunk_lo).max())

    @cached_property
    def most_ranges(self) -> int:
        """Most static anchor ranges of a run."""
        return int(np.diff(self.runs.anchor_ptr).max(initial=0))

    @cached_property
    def most_pieces(self) -> int:
        """Most runs of a unit."""
        return int(self.units.unit_runs.max(initial=1))


@dataclass(frozen=True)
class _Place:
    """Where a sample's numbers start in those that run on."""

    index: int
    key: int
    chunk: int
    segment: int


@lru_cache(maxsize=64)
def geometry(plan: Plan, padded: bool) -> Geometry:
    """Return the tables of a plan, made once; `padded` says whether the call has key_lengths."""
    placed = list(_placed(plan))
    samples = plan.samples
    runs = _runs(plan, placed)
    return Geometry(
        plan=plan,
        keys=_keys(plan, placed),
        runs=runs,
        units=_units(plan, placed, runs),
        rectangles=_rectangles(plan, placed, padded),
        rows=plan.q_tokens,
        q_start=plan.q_start,
        reach=samples[0].reach,
        token_causal=samples[0].token_causal,
        splits_chunks=any(sample.splits_chunks for sample in samples),
    )


def _placed(plan: Plan) -> Iterator[tuple[_Place, SamplePlan]]:
    key = chunk = segment = 0
    for index, sample in enumerate(plan.samples):
        yield _Place(index, key, chunk, segment), sample
        key, chunk = key + sample.k_tokens, chunk + sample.chunks
        segment += len(sample.stream.segments)


def _keys(plan: Plan, placed: list[tuple[_Place, SamplePlan]]) -> Keys:
    chunk_lo, chunk_hi, chunk_segment, segment_lo, tokens, entry = [], [], [], [], [], []
    for place, sample in placed:
        bounds = np.array(sample.stream.bounds)
        chunk_lo.append(sample.chunk_bounds[:-1] + place.key)
        chunk_hi.append(sample.chunk_bounds[1:] + place.key)
        chunk_segment.append(_segment_of(sample, sample.chunk_bounds[:-1]) + place.segment)
        segment_lo.append(bounds[:-1] + place.key)
        tokens.append(np.diff(bounds))
        entry.append(np.arange(len(bounds) - 1) + place.index * plan.most_segments)
    return Keys(*(_joined(parts) for parts in (chunk_lo, chunk_hi, chunk_segment, segment_lo, tokens, entry)))


def _runs(plan: Plan, placed: list[tuple[_Place, SamplePlan]]) -> Runs:
    words = -(-sum(sample.chunks for _, sample in placed) // 32)
    lo, hi, chunk, base, counts, anchor_lo, anchor_hi, allowed = ([] for _ in range(8))
    for place, sample in placed:
        shift = place.key - plan.q_start
        lo.append(sample.run_lo + shift)
        hi.append(sample.run_hi + shift)
        chunk.append(sample.run_chunk + place.chunk)
        base.append(np.full(len(sample.run_lo), place.chunk))
        counts.append(np.diff(sample.anchor_ptr))
        anchor_lo.append(sample.anchor_lo + place.key)
        anchor_hi.append(sample.anchor_hi + place.key)
        allowed.append(_allowed_bits(sample, place.chunk, words))
    run_of_row = np.repeat(np.arange(sum(map(len, lo))), np.concatenate(hi) - np.concatenate(lo))
    assert len(run_of_row) == plan.q_tokens, "runs without padding cover every row"
    return Runs(
        _joined(lo), _joined(hi), _joined(chunk), _joined(base), _pointers(np.concatenate(counts)),
        _joined(anchor_lo), _joined(anchor_hi), np.concatenate(allowed), _int32(run_of_row),
    )  # fmt: skip


def _allowed_bits(sample: SamplePlan, first_chunk: int, words: int) -> Ints:
    """Return (runs, words): which chunks a run may take as far as kinds and causality go."""
    kinds = [sample.stream.segments[s].kind for s in _segment_of(sample, sample.chunk_bounds[:-1])]
    routable = np.array([sample.spec.may_route_to(kind) for kind in kinds])
    shown = np.zeros((len(sample.run_lo), words * 32), bool)
    own = shown[:, first_chunk : first_chunk + sample.chunks]
    own[:] = routable & ~sample.run_dense[:, None]
    if sample.spec.causal != "none":
        own &= np.arange(sample.chunks) < sample.run_chunk[:, None]
    bits: Ints = np.packbits(shown, axis=1, bitorder="little").view("<i4")
    return bits


def _units(plan: Plan, placed: list[tuple[_Place, SamplePlan]], runs: Runs) -> Units:
    row, rows, position, number = [], [], [], []
    for place, sample in placed:
        queries = np.array([(sample.q_start, sample.q_start + sample.q_tokens)])
        first, lo, hi = _blocks(sample, *queries[0]) if isinstance(plan.spec.unit, Block) else _tokens(*queries[0])
        row.append(lo + place.key - plan.q_start)
        rows.append(hi - lo)
        position.append(first)
        number.append(np.full(len(lo), place.index))
    unit_row, unit_rows = _joined(row), _joined(rows)
    unit_run = runs.run_of_row[unit_row]
    return Units(
        unit_row, unit_rows, _joined(position), _joined(number), unit_run,
        _int32(runs.run_of_row[unit_row + unit_rows - 1] - unit_run + 1),
    )  # fmt: skip


def _tokens(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    position = np.arange(start, stop)
    return position, position, position + 1


def _blocks(sample: SamplePlan, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return nominal first position, first and end of the present members of each block in the query range."""
    size = sample.spec.unit.n  # type: ignore[union-attr]  # the caller looked
    first = np.concatenate([np.arange(lo, hi, size) for lo, hi in pairwise(sample.chunk_bounds.tolist())])
    end = np.append(first[1:], sample.k_tokens)
    lo, hi = np.maximum(first, start), np.minimum(end, stop)
    present = lo < hi
    return first[present], lo[present], hi[present]


def _rectangles(plan: Plan, placed: list[tuple[_Place, SamplePlan]], padded: bool) -> Rectangles:
    table: list[tuple[int, ...]] = []
    for place, sample in placed:
        shift, found = place.key - plan.q_start, sample.anchor_rectangles
        columns = (found.q_lo, found.q_hi, found.k_lo, found.k_hi, found.banded)
        for q_lo, q_hi, k_lo, k_hi, banded in zip(*(column.tolist() for column in columns), strict=True):
            for segment, lo, hi in _cut(sample, k_lo, k_hi) if padded else ((0, k_lo, k_hi),):
                rows = (q_lo + shift, q_hi + shift)
                table.append((*rows, lo + place.key, hi + place.key, segment + place.segment, int(banded)))
    return Rectangles(*_int32(np.array(table).reshape(-1, 6).T))


def _cut(sample: SamplePlan, lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
    """Cut a key range by segments: what is valid of each piece is then a prefix."""
    for segment, (start, stop) in enumerate(pairwise(sample.stream.bounds)):
        if max(lo, start) < min(hi, stop):
            yield segment, max(lo, start), min(hi, stop)


def _segment_of(sample: SamplePlan, position: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.searchsorted(sample.stream.bounds, position, side="right") - 1
    return found


def _pointers(counts: NDArray[Any]) -> Ints:
    return _int32(np.concatenate([[0], np.cumsum(counts)]))


def _joined(parts: list[NDArray[Any]]) -> Ints:
    return _int32(np.concatenate(parts))


def _int32(array: NDArray[Any]) -> Ints:
    return np.ascontiguousarray(array, np.int32)

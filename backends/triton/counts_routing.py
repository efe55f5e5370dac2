"""The launches of pooling, routing, and the chunk-major index, counted from a plan."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import triton

from sparsemoc.backends.triton.counts import Job, Part
from sparsemoc.backends.triton.resources import Needs
from sparsemoc.backends.triton.roofline import Launch
from sparsemoc.backends.triton.routing import WARPS
from sparsemoc.backends.triton.routing_tiles import (
    drop_constants,
    index_constants,
    pool_constants,
    query_pieces,
    route_constants,
    route_warps,
)
from sparsemoc.backends.workload import Workload
from sparsemoc.spec.routing import Block

#: Operations of a comparison of packed keys, and of a draw of random words; dot products of pieces.
_COMPARE, _DRAW = 6, 60
_PIECES = {1: 3, 2: 5, 3: 6}


def pool(job: Job, work: Workload) -> Part:
    """One program adds the keys of a chunk, some side by side."""
    constants, count = pool_constants(job.config, job.problem.head_dim), job.problem.kv_heads * job.problem.batch
    keys, width = constants["KEYS"], constants["BLOCK_D"]
    launch = Launch(
        work.chunks * count, ceil(work.chunk / keys), others=keys * width, loads=keys * width * job.item,
        moved=work.keys * count * job.problem.head_dim * job.item,
    )  # fmt: skip
    return job.timed("pool", launch, Needs(0, 32 + 2 * keys * width / (32 * WARPS)), WARPS, 1)


def route(job: Job, work: Workload) -> Iterator[Part]:
    """Tiles of units against tiles of centroids; of a step the best are kept, one after the other."""
    problem, config, slots = job.problem, job.config, job.problem.plan.slots
    if not slots:
        return
    unit, spec = isinstance(problem.plan.spec.unit, Block), problem.plan.spec
    window = problem.plan.samples[0].reach >= 0
    constants = route_constants(config, problem.head_dim, problem.dtype, slots, problem.group, unit, window)
    units, chunks, width = constants["UNITS"], constants["CHUNKS"], constants["BLOCK_D"]
    warps, tiles = route_warps(config, slots), ceil(work.units / units)
    pieces = query_pieces(problem.dtype, unit)
    step = 2 * units * chunks * width * _PIECES[pieces]
    listed = units * (chunks + constants["SLOTS"]) * _COMPARE
    loads = 3 * 2 * chunks * width
    registers = 64 + (units * width * pieces / 2 + 3 * units * chunks + 4 * units * constants["SLOTS"]) / (32 * warps)
    launch = Launch(tiles * job.heads, ceil(work.candidates / chunks) or 1, step, listed, loads)
    # The compiler overlaps no steps of a loop with one inside: stages make no difference.
    needs = Needs(2 * units * width * pieces + loads, registers)
    yield job.timed("route", launch, needs, warps, 1)
    if spec.dropout is not None:
        constants = drop_constants(config, slots, unit, window)
        units, chunks = constants["UNITS"], constants["CHUNKS"]
        others = units * (chunks * (_DRAW / 4 + _COMPARE) + constants["SLOTS"] * _COMPARE)
        launch = Launch(ceil(work.units / units) * job.heads, ceil(work.candidates / chunks) or 1, others=others)
        registers = 64 + units * (6 * chunks + 8 * constants["SLOTS"]) / (32 * WARPS)
        yield job.timed("route dropout", launch, Needs(0, registers), WARPS, 1)


def index(job: Job, work: Workload) -> Iterator[Part]:
    """Each program goes through the rows of a tile in order, twice."""
    constants = index_constants(job.config, job.problem.plan.slots)
    rows = max(job.config.index_rows, triton.next_power_of_2(work.chunks))
    step, width = constants["STEP"], constants["SLOTS"]
    tiles, entries = ceil(work.queries / rows), step * width
    # Where several rows go at once their entries are compared pairwise.
    others = entries * (entries if step > 1 else 1) * 2
    moved = 4 * job.heads * (3 * work.chunks * tiles + 2 * work.routed)
    launch = Launch(2 * tiles * job.heads, min(rows, work.queries) / step, others=others, moved=moved)
    registers = 32 + 4 * entries * entries / (32 * WARPS) if step > 1 else 32
    yield job.timed("index", launch, Needs(0, registers), WARPS, 1)

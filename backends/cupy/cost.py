"""What a config would cost on a GPU: the launches of an operation that it has a say in, counted from the plan.

No data is known: a chunk is chosen by `choosing` of the rows, the last tile of a list is half full, a range of keys is
cut in whole tiles. See `roofline` for the time of a launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import ceil
from typing import NamedTuple

from sparsemoc.backends.cupy import backward, forward
from sparsemoc.backends.cupy.config import CupyConfig, most_shared
from sparsemoc.backends.cupy.grad_kernels import dim_parts, key_grads_kernel, query_grads_kernel
from sparsemoc.backends.cupy.launch_forward import keys_stay, routed_span, shares_routes
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.pair_kernels import PIECES, SIZES, anchors_kernel, merge_kernel, merged_rows, routed_kernel
from sparsemoc.backends.cupy.roofline import LANES, LATENCY, Launch, seconds
from sparsemoc.backends.cupy.routing_tiles import index_kernel, pool_kernel, route_kernel, route_tile
from sparsemoc.backends.cupy.shared import head_block
from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.planning.workspace import refused
from sparsemoc.backends.protocol import Estimate, Operation, Problem
from sparsemoc.backends.workload import Workload, workloads
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.routing import Block

#: Registers of a kernel of pairs beside its accumulators; operations to cut a float32 into pieces; of a pair's weight.
_BASE, _CUT, _WEIGH = 90, 8, 10
#: Products of 16-bit numbers to one, by the pieces of a float32; and of a query in a route's score, by dtype.
_PRODUCTS = {1: 1, 2: 3, 3: 6}
_SCORES = {"bfloat16": 3, "float16": 5, "float32": 6}
#: The field that the warps of a kernel share, and what its fields begin with; the values that others take.
_SHARED = {"anchor_rows": "anchor", "routed_rows": "routed", "grad_keys": "grad", "grad_query_rows": "grad_query"}
_VALUES = {
    **dict.fromkeys(("anchor_keys", "routed_keys", "grad_query_keys"), tuple(range(16, 129, 16))),
    "grad_rows": (16, 32, 64), "grad_stages": (1, 2), "route_chunks": (16, 32),
}  # fmt: skip


@lru_cache(maxsize=1024)
def estimate(problem: Problem, operation: Operation, config: CupyConfig, capability: int) -> Estimate:
    """Return the seconds of an operation on a GPU of a compute capability, or why a config cannot run there."""
    if (reason := _misshapen(config) or _workspace(problem, operation, config)) is not None:
        return Estimate(reason=reason)
    try:
        found = list(launches(problem, operation, config, capability))
    except UnsupportedError as error:
        return Estimate(reason=str(error))
    most = most_shared(capability)
    for one in found:
        if one.kernel.shared > most:
            reason = f"{one.kernel.name} needs {one.kernel.shared} bytes of shared memory, sm_{capability} has {most}"
            return Estimate(reason=reason)
    return Estimate(sum(seconds(one, capability) for one in found))


def launches(problem: Problem, operation: Operation, config: CupyConfig, capability: int) -> Iterator[Launch]:
    """Yield the launches of an operation that its config has a say in."""
    count = {"pool": _pool, "route": _route, "attend": _attend, "attend_backward": _backward}[operation]
    for work in workloads(problem.plan):
        yield from count(_Job(problem, config, capability), work)


def _misshapen(config: CupyConfig) -> str | None:
    """Return which field holds what the kernels cannot take, or None."""
    for name, tile in _SHARED.items():
        value, warps, blocks = (getattr(config, one) for one in (name, f"{tile}_warps", f"{tile}_blocks"))
        if value not in (16 * warps, 32 * warps):
            return f"{name} must be 16 or 32 to each of {warps} warps, not {value}"
        if 32 * warps * blocks > 1024:
            return f"{tile}_blocks must be at most {32 // warps} of {warps} warps, not {blocks}"
    for name, values in _VALUES.items():
        if (value := getattr(config, name)) not in values:
            return f"{name} must be one of {', '.join(map(str, values))}, not {value}"
    return None


def _workspace(problem: Problem, operation: Operation, config: CupyConfig) -> str | None:
    most = problem.options.max_workspace
    if most is None or operation in ("pool", "route"):
        return None
    least = (forward if operation == "attend" else backward).least_workspace(problem, config)
    return refused(least, most) if least > most else None


class _Job:
    """A problem with what every count asks for."""

    def __init__(self, problem: Problem, config: CupyConfig, capability: int) -> None:
        self.problem, self.config, self.capability = problem, config, capability
        self.heads, self.kv_heads = problem.heads * problem.batch, problem.kv_heads * problem.batch
        self.size = SIZES[problem.dtype]
        self.pieces = PIECES[problem.options.precision] if self.size == 4 else 1
        self.depth, self.v_depth = head_block(problem.head_dim), head_block(problem.v_head_dim)
        #: What kernels of pairs are made of; bytes of a row of keys with its values.
        self.about = problem.dtype, problem.head_dim, problem.v_head_dim, problem.options.precision, config
        self.row = (self.depth + self.v_depth) * self.size

    def pairs(self, kernel: Kernel, tile: _Tile, blocks: float, steps: float, stays: bool = False,
              moved: float = 0.0) -> Launch:  # fmt: skip
        """Return a launch that multiplies tiles: every warp reads all that pass, and its own of what the warps share.

        `stays`: what passes is there once for a block, and what the warps share comes anew at each step.
        """
        depth = tile.with_depth * self.depth + tile.with_v_depth * self.v_depth
        warps, own, passing = kernel.threads // 32, tile.own * self.row, tile.passing * self.row
        reads = (warps * tile.passing * depth + tile.own * self.depth) * self.size
        products = 2 * tile.own * tile.passing * depth * _PRODUCTS[self.pieces]
        cut = _CUT * reads / self.size if self.pieces > 1 else 0
        registers = _BASE + tile.own / (16 * warps) * (tile.sums + tile.passing) / 2 + 20 * (self.pieces > 1)
        return Launch(
            kernel, blocks, steps, products, reads, _WEIGH * tile.own * tile.passing + 2 * tile.own * tile.sums + cut,
            *((own, passing) if stays else (passing, own)), moved, registers,
        )  # fmt: skip


class _Tile(NamedTuple):
    """Rows or keys that the warps share, and those that pass; products of a pair by width; sums of a shared one."""

    own: int
    passing: int
    with_depth: int
    with_v_depth: int
    sums: int


def _pool(job: _Job, work: Workload) -> Iterator[Launch]:
    """A block adds the keys of a chunk."""
    yield _mean(job, "pool", work.chunks * job.kv_heads, work.chunk)


def _mean(job: _Job, name: str, count: float, length: float) -> Launch:
    """Return the launch of means over `length` rows each, which the warps of a block share, and then add up."""
    warps, row = job.config.pool_warps, job.problem.head_dim * job.size
    rows = warps * max(1, 512 // row)
    kernel = pool_kernel(name, job.problem.dtype, job.problem.head_dim, warps)
    return Launch(kernel, count, ceil(length / rows), 0, 0, rows * row, rows * row, warps * row, count * length * row)


def _route(job: _Job, work: Workload) -> Iterator[Launch]:
    """Means of units, if they are of several queries; then tiles of units against those of centroids, in 3 pieces."""
    plan, dtype = job.problem.plan, job.problem.dtype
    if not plan.slots:
        return
    if isinstance(plan.spec.unit, Block):
        dtype = "float32"
        yield _mean(job, "pool_units", work.units * job.heads, work.queries / max(work.units, 1))
    kernel = route_kernel(dtype, job.problem.head_dim, plan.spec.max_top_k, job.config, job.capability)
    units, chunks = route_tile(kernel)
    planes = 6 * chunks * job.depth
    yield Launch(
        kernel, ceil(work.units / units) * job.heads, ceil(work.candidates / chunks) or 1,
        2 * units * chunks * job.depth * _SCORES[dtype], planes * kernel.threads / 32,
        units * (chunks + plan.slots) * 6, planes, units * job.depth * SIZES[dtype], registers=112,
    )  # fmt: skip


def _index(job: _Job, work: Workload) -> Iterator[Launch]:
    """A block counts the rows of a tile, and a warp goes through them in order."""
    rows, slots = max(job.config.index_rows, work.chunks), job.problem.plan.slots
    tiles = ceil(work.queries / rows)
    moved = 4 * job.heads * (3 * work.chunks * tiles + 3 * work.queries * slots)
    for name, warps in (("count_entries", 8), ("place_entries", 1)):
        steps = min(rows, work.queries) * slots / (32 * warps)
        yield Launch(index_kernel(name), ceil(tiles * warps / 8) * job.heads, steps, plain=64, moved=moved / 2)


def _attend(job: _Job, work: Workload) -> Iterator[Launch]:
    """Anchors, index and routes, or both as one; and the merge."""
    config, value = job.config, job.v_depth * job.size
    union, items = shares_routes(geometry(job.problem.plan, False), config), 1
    if work.rectangles or union:
        items = max(1, ceil(work.overlap * work.span / config.anchor_split))
        tile = _Tile(config.anchor_rows, config.anchor_keys, 1, 1, job.v_depth)
        tiles, steps = _anchored(work, tile)
        steps += work.choosing * work.chunks * ceil(work.chunk / tile.passing) if union else 0
        moved = job.heads * work.queries * (job.row + items * value)
        blocks = tiles * items * job.heads
        yield job.pairs(anchors_kernel(*job.about), tile, blocks, steps / items, moved=moved)
    if work.routed and not union:
        yield from _index(job, work)
        yield _routed(job, work)
    parts = items + (0 if union else work.routed / work.queries)
    rows = merged_rows(job.problem.dtype, job.problem.v_head_dim)
    yield Launch(
        merge_kernel(job.problem.dtype, job.problem.v_head_dim), job.heads * work.queries / rows, parts,
        loads=rows * value, moved=job.heads * work.queries * (parts + 1) * value,
    )  # fmt: skip


def _anchored(work: Workload, tile: _Tile) -> tuple[float, float]:
    """Return the tiles of rows, and of keys to each: what is masked for some rows of a tile is computed for all."""
    tiles = work.queries / tile.own + 0.5 * min(work.rectangles, work.queries / tile.own)
    return tiles, work.overlap * ceil((work.span + (0.5 * tile.own if work.masked else 0)) / tile.passing)


def _routed(job: _Job, work: Workload) -> Launch:
    """Groups of rows that chose a chunk: its keys stay for several, or pass by each."""
    config, tables = job.config, geometry(job.problem.plan, False)
    tile = _Tile(config.routed_rows, config.routed_keys, 1, 1, job.v_depth)
    groups, blocks = (_row_tiles(work, rows) for rows in (tile.own, tile.own * routed_span(tables, config)))
    stay = keys_stay(tables, config)
    steps = groups / blocks if stay else ceil(work.chunk / tile.passing)
    moved = job.heads * work.routed * job.v_depth * job.size
    return job.pairs(routed_kernel(*job.about, stay), tile, blocks * job.heads, steps, stay, moved)


def _row_tiles(work: Workload, rows: int) -> float:
    """Return how many tiles of rows the lists of all chunks fill: the last of each is half full."""
    return work.routed / rows + 0.5 * min(work.chunks, work.routed)


def _backward(job: _Job, work: Workload) -> Iterator[Launch]:
    """Gradients of keys, whose tiles stay while rows pass; then those of queries, of anchors and of routes."""
    config, parts = job.config, dim_parts(job.problem.head_dim, job.problem.v_head_dim)
    if work.routed:
        yield from _index(job, work)
    tile = _Tile(config.grad_keys, config.grad_rows, 2, 2, (job.depth + job.v_depth) // parts)
    chosen = work.choosing * work.queries
    steps = work.anchored / work.keys / tile.passing + 0.5 * work.overlap
    steps = job.problem.group * (steps + (chosen / tile.passing + min(0.5, chosen) if work.routed else 0))
    split = max(1, min(ceil(steps * tile.passing / config.grad_segment), config.grad_parts))
    blocks = work.chunks * ceil(work.chunk / tile.own) * parts * split * job.kv_heads
    moved = job.kv_heads * work.keys * job.row * (2 + 4 * (split > 1))
    found = job.pairs(key_grads_kernel(*job.about), tile, blocks, steps / split, moved=moved)
    # With one tile of rows in shared memory nothing arrives while it is taken.
    yield found if config.grad_stages > 1 else found._replace(plain=found.plain + LATENCY * LANES)
    tile = _Tile(config.grad_query_rows, config.grad_query_keys, 2, 1, job.depth)
    routed = _row_tiles(work, tile.own) if work.routed else 0.0, float(ceil(work.chunk / tile.passing))
    for name, (tiles, length) in (("anchor_query_grads", _anchored(work, tile)), ("routed_query_grads", routed)):
        if tiles and length:
            sums = 8 * job.heads * tiles * tile.own * job.depth
            yield job.pairs(query_grads_kernel(name, *job.about), tile, tiles * job.heads, length, moved=sums)

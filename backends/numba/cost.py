"""What a config would cost, by count: cycles of the matrix products, and bytes by the cache that they come from.

The numbers are nominal: two fused multiply-adds of vectors a cycle, and the bytes a cycle below. What they are for is
the order of configs. For a tile of R rows and K keys, cut in strips of at most STRIP rows:

    product(r, width, terms)  = ceil(width / 2 vectors) * (terms * max(r, LATENCY) + CALL)
    forward, a strip          = max(product(r, K, D) + product(r, Dv, K), bytes of keys and values / rate(the tile))
                                + EXP * r * K / lanes
                                + bytes of its rows (q; out twice) / rate(state of the query block)
                                + bytes of its logits, four times / rate(32 KB cache or the next)
    forward, a tile           = its strips + bytes of its keys and values / rate(those of the head)
    backward, a tile          = its strips, five products + sums of dk and dv, twice / rate(the tile) + buffers

`rate(bytes)` is that of the smallest cache that holds them. Tiles are counted from the plan: each rectangle of anchors
falls into pieces at the bounds of query blocks, and a chunk is chosen in a block by `choosing` of its queries. The sum
goes to the threads by whole units: rounds = ceil(units / threads). In the backward every phase waits for its last unit.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, exp
from typing import NamedTuple

from sparsemoc.backends.numba.config import NumbaConfig
from sparsemoc.backends.numba.hardware import Caches, caches
from sparsemoc.backends.numba.intrinsics import STRIP
from sparsemoc.backends.numba.launch import head_groups, lanes_of, packed_bytes, padded
from sparsemoc.backends.protocol import Estimate, Operation, Problem, lse_dtype
from sparsemoc.backends.workload import Workload, workloads

#: Cycles a second; of the fused multiply-add; of a call of a product; of a tile; to exponentiate a vector.
HERTZ, LATENCY, CALL, TILE, EXP = 3e9, 4, 40, 300, 10
#: Bytes a cycle of one core from each cache, and from memory.
RATES = (64.0, 24.0, 10.0, 4.0)
#: Cycles for a new page's byte; of a thread that waits for the others.
PAGE, BARRIER = 0.25, 60_000


class _Machine(NamedTuple):
    """What cycles are counted for: widths in elements of a dtype, and caches in bytes."""

    depth: int
    v_depth: int
    item: int
    lanes: int
    caches: Caches
    threads: int

    def moved(self, elements: float, held: float) -> float:
        """Return the cycles to move elements of a set of `held` elements."""
        sizes = (self.caches.first, self.caches.second, self.caches.third / self.threads)
        level = sum(held * self.item > size for size in sizes)
        return elements * self.item / RATES[level]

    def product(self, rows: float, width: float, terms: float) -> float:
        """Return the cycles of (rows, terms) @ (terms, width)."""
        return ceil(width / (2 * self.lanes)) * (terms * max(rows, LATENCY) + CALL)


def refused(problem: Problem) -> str | None:
    """Return why no config can run a problem, or None: one key head is packed at a time, at least."""
    most, least = problem.options.max_workspace, packed_bytes(problem, problem.backward)
    if most is None or least <= most:
        return None
    return f"needs {least} bytes of workspace for one key head, more than max_workspace = {most}"


@lru_cache(maxsize=256)
def estimate(problem: Problem, operation: Operation, config: NumbaConfig, threads: int) -> Estimate:
    """Return the seconds of an operation by the counts above; None of pool and route, which have nothing to tune."""
    reason = refused(problem)
    if reason is not None or operation in ("pool", "route"):
        return Estimate(reason=reason)
    dtype = lse_dtype(problem.dtype)
    lanes = lanes_of(dtype)
    depth, v_depth = padded(problem.head_dim, lanes), padded(problem.v_head_dim, lanes)
    machine = _Machine(depth, v_depth, dtype.itemsize, lanes, caches(), threads)
    groups = head_groups(
        problem.kv_heads, packed_bytes(problem, operation == "attend_backward"), problem.options.max_workspace
    )
    cycles = 0.0
    for work in workloads(problem.plan):
        for kv in groups:
            heads = kv.stop - kv.start
            if operation == "attend":
                cycles += _attend(problem, work, config, machine, heads * problem.group)
            else:
                cycles += _backward(problem, work, config, machine, heads)
    return Estimate(cycles / HERTZ * (1 if problem.plan.packed else problem.batch))


def _attend(problem: Problem, work: Workload, config: NumbaConfig, machine: _Machine, heads: int) -> float:
    """Return the cycles of some heads of a sample, forward."""
    blocks = len(config.forward_blocks(problem.plan, work.queries, work.chunks)) - 1
    block = work.queries / blocks
    held = work.keys * (machine.depth + machine.v_depth)
    unit = 0.0
    for count, rows, keys in _pieces(work, blocks):
        tiles = ceil(keys / config.key_tile)
        # A tile at the edge of what is masked is computed whole.
        size = keys / tiles + (0.5 * config.key_tile if work.masked else 0)
        unit += count / blocks * tiles * _forward_tile(machine, rows, size, block, held)
    state = block * (machine.depth + machine.v_depth + 2)
    rounds = ceil(heads * blocks / machine.threads)
    return rounds * unit + PAGE * state * machine.item


def _forward_tile(machine: _Machine, rows: float, keys: float, block: float, held: float) -> float:
    """Return the cycles of a tile of the forward."""
    depth, v_depth = machine.depth, machine.v_depth
    strips = _strips(rows)
    each = rows / strips
    products = machine.product(each, keys, depth) + machine.product(each, v_depth, keys)
    strip = max(products, machine.moved(keys * (depth + v_depth), keys * (depth + v_depth)))
    strip += EXP * each * keys / machine.lanes
    strip += machine.moved(each * (depth + 2 * v_depth), block * (depth + v_depth + 2))
    strip += machine.moved(4 * each * keys, each * keys)
    return TILE + strips * strip + machine.moved(keys * (depth + v_depth), held)


def _backward(problem: Problem, work: Workload, config: NumbaConfig, machine: _Machine, kv_heads: int) -> float:
    """Return the cycles of some key heads of a sample, backward."""
    blocks = ceil(work.queries / config.grad_block)
    key_blocks = min(work.chunks, ceil(work.keys / config.grad_block))
    units = blocks * key_blocks
    cycles = 0.0
    for count, rows, keys in _pieces(work, blocks, key_blocks):
        row_tiles, key_tiles = ceil(rows / config.grad_rows), ceil(keys / config.grad_keys)
        size = keys / key_tiles + (0.5 * config.grad_keys if work.masked else 0)
        cycles += count * row_tiles * key_tiles * _backward_tile(machine, rows / row_tiles, size, work)
    phases, active = max(blocks, key_blocks), kv_heads * min(blocks, key_blocks)
    rounds = phases * ceil(active / machine.threads)
    return rounds * cycles * problem.group / units + phases * BARRIER


def _backward_tile(machine: _Machine, rows: float, keys: float, work: Workload) -> float:
    """Return the cycles of a tile of the backward."""
    depth, v_depth = machine.depth, machine.v_depth
    strips = _strips(rows)
    each, parts = rows / strips, ceil(keys / STRIP)
    held = keys * (3 * depth + 2 * v_depth) + rows * (2 * keys + depth + v_depth)
    products = machine.product(each, keys, depth) + machine.product(each, keys, v_depth)
    products += machine.product(each, depth, keys)
    strip = max(products, machine.moved(keys * (2 * depth + v_depth), held))
    strip += 2 * EXP * each * keys / machine.lanes + machine.moved(3 * each * depth, held)
    sums = parts * (machine.product(keys / parts, depth, rows) + machine.product(keys / parts, v_depth, rows))
    sums += machine.moved(2 * keys * (depth + v_depth), held) + machine.moved(6 * rows * keys, held)
    loads = machine.moved(rows * (depth + v_depth), work.queries * (depth + v_depth))
    return TILE + strips * strip + sums + loads


def _strips(rows: float) -> float:
    """Return the strips of a tile of `rows` rows on average: the last of them is half full."""
    return max(1.0, rows / STRIP + 0.5)


def _pieces(work: Workload, blocks: int, key_blocks: int = 1) -> list[tuple[float, float, float]]:
    """Return (how many, rows, keys) of what a head's rectangles, and its chunks, fall into at the bounds of blocks."""
    found = []
    if work.rectangles:
        cut_rows = work.rectangles + (blocks - 1) * work.overlap
        cut_keys = 1 + work.span * (key_blocks - 1) / work.keys
        found.append((cut_rows * cut_keys, work.rows / cut_rows, max(work.span / cut_keys, 1)))
    if work.routed:
        rows = work.choosing * work.queries / blocks
        # A block in which few are expected to choose a chunk may have none.
        there = 1 - exp(-rows)
        found.append((blocks * work.chunks * there, rows / there, work.chunk))
    return found

"""The launches of attention and its gradients, counted from a plan."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.triton.counts import Job, Part
from sparsemoc.backends.triton.counts_routing import index
from sparsemoc.backends.triton.forward import shares_routes
from sparsemoc.backends.triton.resources import Needs, Tile, attend_needs, grad_needs, query_grad_needs
from sparsemoc.backends.triton.roofline import LATENCY, Launch, share_of_peak
from sparsemoc.backends.triton.routing_tiles import padded_dim
from sparsemoc.backends.workload import Workload


def attend(job: Job, work: Workload) -> Iterator[Part]:
    """Yield the launches of the forward: anchors, index and routes, or both as one; and the merge."""
    union = shares_routes(geometry(job.problem.plan, False), job.config)
    items = 1
    if work.rectangles or union:
        items = max(1, ceil(work.overlap * work.span / job.config.anchor_split))
        yield _anchors(job, work, union, items)
    if work.routed and not union:
        yield from index(job, work)
        yield _routed(job, work)
    yield _merge(job, work, items, 0 if union else work.routed)


def _anchors(job: Job, work: Workload, union: bool, items: int) -> Part:
    """Return the launch of the anchors: a program for each tile of rows, and each part of its keys."""
    config = job.config
    tile = job.tile(config.anchor_rows, config.anchor_keys, config.anchor_warps, config.anchor_stages)
    # Tiles end at the bounds of rectangles where these lie near.
    tiles = work.queries / tile.rows + 0.5 * min(work.rectangles, work.queries / tile.rows)
    # What is masked for some rows of a tile is computed for all of them.
    span = work.span + (0.5 * tile.rows if work.masked else 0)
    steps = work.overlap * ceil(span / tile.keys)
    steps += work.choosing * work.chunks * ceil(work.chunk / tile.keys) if union else 0
    moved = job.heads * work.queries * (tile.depth * job.item + items * tile.v_depth * job.partial)
    return _pairs(job, "anchors", tile, tiles * items, steps / items, moved)


def _routed(job: Job, work: Workload) -> Part:
    """Return the launch of the routed pairs: a program for each tile of rows that chose a chunk."""
    config = job.config
    tile = job.tile(config.routed_rows, config.routed_keys, config.routed_warps, config.routed_stages)
    steps = ceil(work.chunk / tile.keys)
    moved = job.heads * work.routed * tile.v_depth * job.partial
    return _pairs(job, "routed", tile, _row_tiles(work, tile.rows), steps, moved)


def _row_tiles(work: Workload, rows: int) -> float:
    """Return how many tiles of rows the lists of all chunks fill: the last of each is half full."""
    return work.routed / rows + 0.5 * min(work.chunks, work.routed)


def _pairs(job: Job, kernel: str, tile: Tile, tiles: float, steps: float, moved: float) -> Part:
    widths = tile.depth + tile.v_depth
    launch = Launch(
        tiles * job.heads, steps, 2 * tile.rows * tile.keys * widths, 4 * tile.rows * tile.keys,
        tile.keys * widths * tile.item, moved,
    )  # fmt: skip
    share = share_of_peak(tile, job.capability, tile.rows)
    return job.timed(kernel, launch, attend_needs(tile, job.capability), tile.warps, tile.stages, share)


def _merge(job: Job, work: Workload, items: int, routes: float) -> Part:
    config, width = job.config, padded_dim(job.problem.v_head_dim)
    read = job.heads * (items * work.queries + routes) * (width * job.partial + 8)
    steps = items + routes / max(work.queries, 1)
    tile = config.merge_rows * width
    launch = Launch(
        job.heads * work.queries / config.merge_rows, steps, others=4 * tile, loads=tile * job.partial,
        moved=read + job.heads * work.queries * width * job.item,
    )  # fmt: skip
    registers = 40 + 3 * tile / (32 * config.merge_warps)
    return job.timed("merge", launch, Needs(0, registers), config.merge_warps, config.merge_stages)


def backward(job: Job, work: Workload) -> Iterator[Part]:
    """Yield the launches of the backward: the index, gradients of keys, and, in a fixed order, of queries."""
    atomic = job.config.grad_atomic and not job.problem.deterministic
    if work.routed:
        yield from index(job, work)
    yield _grads(job, work, atomic)
    if not atomic:
        yield _query_grads(job, work)


def _grads(job: Job, work: Workload, atomic: bool) -> Part:
    """Return the launch of the gradients of keys: a program for each tile of keys, and each part of its rows."""
    config, group, kv = job.config, job.problem.group, job.problem.kv_heads * job.problem.batch
    tile = job.tile(config.grad_rows, config.grad_keys, config.grad_warps, config.grad_stages)
    key_tiles = ceil(work.chunk / tile.keys)
    anchored = work.anchored / work.keys / tile.rows + 0.5 * work.overlap
    chosen = work.choosing * work.queries
    steps = group * (anchored + (chosen / tile.rows + min(0.5, chosen) if work.routed else 0))
    split = max(1, min(ceil(steps * tile.rows / config.grad_segment), config.grad_parts))
    widths = tile.depth + tile.v_depth
    products = 2 * tile.rows * tile.keys * (2 * widths + tile.depth * atomic)
    # Atomic additions take as long as writing twice.
    loads = tile.rows * (widths * tile.item + (8 * tile.depth if atomic else 0))
    moved = kv * 2 * work.keys * widths * (tile.item + 4 * (split > 1))
    launch = Launch(
        work.chunks * key_tiles * split * kv, steps / split, products, 8 * tile.rows * tile.keys, loads, moved
    )  # fmt: skip
    needs, share = grad_needs(tile, job.capability), share_of_peak(tile, job.capability, tile.keys)
    return job.timed("grads", launch, needs, tile.warps, tile.stages, share)


def _query_grads(job: Job, work: Workload) -> Part:
    """Return the launches of the gradients of queries in a fixed order, of anchors and routes together."""
    config = job.config
    tile = job.tile(
        config.grad_query_rows, config.grad_query_keys, config.grad_query_warps, config.grad_query_stages
    )  # fmt: skip
    anchored = work.queries / tile.rows * work.overlap * ceil(max(work.span, 1) / tile.keys)
    tiles = work.queries / tile.rows + (_row_tiles(work, tile.rows) if work.routed else 0)
    steps = anchored + (tiles - work.queries / tile.rows) * ceil(work.chunk / tile.keys)
    widths = tile.depth + tile.v_depth
    launch = Launch(
        tiles * job.heads, steps / tiles, 2 * tile.rows * tile.keys * (widths + tile.depth),
        8 * tile.rows * tile.keys, tile.keys * widths * tile.item,
        8 * job.heads * (work.queries + work.routed) * tile.depth, LATENCY,
    )  # fmt: skip
    needs, share = query_grad_needs(tile, job.capability), share_of_peak(tile, job.capability, tile.rows)
    return job.timed("query grads", launch, needs, tile.warps, tile.stages, share)

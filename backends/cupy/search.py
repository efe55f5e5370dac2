"""The configs worth trying on a GPU: products of the tiles of an operation's kernels, the best by the cost model.

What has no effect on a problem is not varied: no tile is longer than what it cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.cost import estimate
from sparsemoc.backends.cupy.hardware import capability
from sparsemoc.backends.cupy.launch_forward import keys_stay, shares_routes
from sparsemoc.backends.cupy.roofline import REGISTERS, register_limit
from sparsemoc.backends.cupy.routing_tiles import route_kernel
from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.protocol import Operation, Problem
from sparsemoc.backends.workload import workloads
from sparsemoc.spec.routing import Block

#: Most configs of an operation, the default among them.
MOST: dict[Operation, int] = {"pool": 6, "route": 20, "attend": 60, "attend_backward": 60}
#: Tiles of a kernel that is tuned alone, and of two that are combined.
_ALONE, _COMBINED = 40, 7
_WARPS, _TILES, _KEYS, _BLOCKS = (2, 4, 8), (1, 2), (16, 32, 64, 96, 128), (1, 2, 3, 4)

Fields = dict[str, Any]


def search_space(problem: Problem, operation: Operation, default: CupyConfig) -> list[CupyConfig]:
    """Return the default, then the configs of an operation that could run, the cheapest first."""
    space = _Space(problem, operation, default)
    made = {"pool": _pool, "route": _route, "attend": _attend, "attend_backward": _backward}[operation](space)
    others = [one for one in dict.fromkeys(replace(default, **fields) for fields in made) if one != default]
    return [default, *space.ranked(others)][: MOST[operation]]


class _Space:
    """A problem, and what of it bounds the tiles."""

    def __init__(self, problem: Problem, operation: Operation, default: CupyConfig) -> None:
        self.problem, self.operation, self.default = problem, operation, default
        self.capability, self.geometry, self.slots = (
            capability(problem),
            geometry(problem.plan, False),
            problem.plan.slots,
        )
        rectangles = self.geometry.rectangles
        self.anchored, self.rows, self.chunk = len(rectangles.q_lo) > 0, self.geometry.rows, self.geometry.most_chunk
        self.span = int((rectangles.k_hi - rectangles.k_lo).max(initial=1))

    def ranked(self, configs: Iterable[CupyConfig]) -> list[CupyConfig]:
        """Return the configs that could run, the cheapest first."""
        costs = {one: estimate(self.problem, self.operation, one, self.capability) for one in configs}
        possible = [one for one, cost in costs.items() if cost.reason is None]
        return sorted(possible, key=lambda one: costs[one].seconds or 0.0)

    def best(self, made: Iterable[Fields], most: int) -> list[Fields]:
        """Return the default's fields, then the best of others by the cost model."""
        configs = {replace(self.default, **fields): fields for fields in made}
        configs.pop(self.default, None)
        return [{}, *(configs[one] for one in self.ranked(configs))][:most]

    def pairs(self, kernel: str, keys: int) -> Iterator[Fields]:
        """Yield the tiles of a kernel of pairs, by what the names of its fields begin with; `keys`: most to see."""
        own = getattr(self.default, f"{kernel}_blocks")
        for warps, tiles, length, blocks in product(_WARPS, _TILES, _KEYS, _BLOCKS):
            # Blocks count where they leave a thread fewer registers.
            counts, own_counts = (register_limit(32 * warps, one) < REGISTERS for one in (blocks, own))
            if not counts and blocks != (1 if own_counts else own):
                continue
            if _fits(length, keys, _KEYS) and _fits(16 * tiles * warps, self.rows, (32, 64, 128, 256)):
                yield {
                    f"{kernel}_rows": 16 * tiles * warps, f"{kernel}_keys": length, f"{kernel}_warps": warps,
                    f"{kernel}_blocks": blocks,
                }  # fmt: skip


def _fits(length: int, whole: int, lengths: tuple[int, ...]) -> bool:
    """Return whether no shorter one of some lengths holds the whole."""
    return not any(whole <= one < length for one in lengths)


def _pool(space: _Space) -> Iterator[Fields]:
    for warps in (1, 2, 4, 8, 16):
        if warps <= space.chunk:
            yield {"pool_warps": warps}


def _route(space: _Space) -> Iterator[Fields]:
    """Yield tiles of routing, one of those that shared memory makes alike; of units of queries, warps of their mean."""
    if not space.slots:
        return
    unit, top_k = isinstance(space.problem.plan.spec.unit, Block), space.problem.plan.spec.max_top_k
    seen, dtype = set(), "float32" if unit else space.problem.dtype
    for warps, chunks in product((4, 2, 8, 1), (32, 16)):
        fields: Fields = {"route_warps": warps, "route_chunks": chunks}
        config = replace(space.default, **fields)
        effect = route_kernel(dtype, space.problem.head_dim, top_k, config, space.capability)
        if effect not in seen and _fits(chunks, space.geometry.chunks, (16, 32)):
            seen.add(effect)
            yield fields
    if unit:
        yield from _pool(space)


def _attend(space: _Space) -> Iterator[Fields]:
    """Yield tiles of the anchors with tiles of the routes; then changes of the default in what is left."""
    default = space.default
    union = shares_routes(space.geometry, default)
    anchors, routes = space.anchored or union, space.slots > 0 and not union
    most, keys = _COMBINED if anchors and routes else _ALONE, max(space.span, space.chunk if union else 1)
    tiles = space.best(space.pairs("anchor", keys), most) if anchors else [{}]
    gathered = space.best(space.pairs("routed", space.chunk), most) if routes else [{}]
    for one, other in product(tiles, gathered):
        yield one | other
    if space.slots and isinstance(space.problem.plan.spec.unit, Block):
        yield {"anchor_union": 1 if not union else space.problem.plan.q_tokens + space.problem.plan.spec.unit.n}
    if max(one.overlap * one.span for one in workloads(space.problem.plan)) > default.anchor_split // 2:
        yield from ({"anchor_split": default.anchor_split // 2}, {"anchor_split": default.anchor_split * 2})
    if routes:
        yield from _spans(space)
        yield from _index(space)


def _spans(space: _Space) -> Iterator[Fields]:
    """Yield how many groups of rows pass by a chunk that stays: no more than there are, were all rows to choose it."""
    own = space.default.routed_span
    if keys_stay(space.geometry, space.default):
        yield from (
            {"routed_span": one} for one in (own // 2, own * 2) if 0 < one * space.default.routed_rows <= space.rows
        )


def _backward(space: _Space) -> Iterator[Fields]:
    """Yield tiles of the gradients of keys with tiles of those of queries; then changes of the default in the rest."""
    default = space.default
    keys = (
        {"grad_warps": warps, "grad_keys": 16 * tiles * warps, "grad_rows": rows, "grad_stages": stages}
        for warps, tiles, rows, stages in product(_WARPS, _TILES, (16, 32, 64), (1, 2))
        if _fits(16 * tiles * warps, space.chunk, (32, 64, 128, 256)) and _fits(rows, space.rows, (16, 32, 64))
    )
    queries = space.pairs("grad_query", max(space.span, space.chunk))
    for one, other in product(space.best(keys, _COMBINED), space.best(queries, _COMBINED)):
        yield one | other
    for name in ("grad_segment", "grad_parts"):
        own = getattr(default, name)
        yield from ({name: own // 2}, {name: own * 2})
    if space.slots:
        yield from _index(space)


def _index(space: _Space) -> Iterator[Fields]:
    """Yield rows of the index: tiles have as many as there are chunks, at least."""
    own, least = space.default.index_rows, space.geometry.chunks
    for rows in (own // 2, own * 2):
        if max(rows, least) != max(own, least) and rows // 2 < space.rows:
            yield {"index_rows": rows}

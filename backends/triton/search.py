"""The configs worth trying on a GPU: products of the tiles of an operation's kernels, the best by the cost model.

The kernels of an operation follow one another, so their tiles are ranked apart, and the best of each are combined.
What has no effect on a problem is not varied: no tile is longer than what it cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import triton

from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.protocol import Operation, Problem
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.cost import estimate
from sparsemoc.backends.triton.forward import shares_routes
from sparsemoc.backends.triton.routing_tiles import drop_constants, index_constants, route_constants
from sparsemoc.backends.workload import workloads
from sparsemoc.spec.routing import Block

#: Most configs of an operation, the default among them.
MOST: dict[Operation, int] = {"pool": 6, "route": 30, "attend": 60, "attend_backward": 60}
#: Tiles of a kernel that is tuned alone, and of two that are combined.
_ALONE, _COMBINED = 40, 7
#: Bounds of what is tried around the default: of tiles, of warps, of stages.
_TILE, _WARPS, _STAGES = (16, 128), (2, 8), (1, 5)

Fields = dict[str, Any]


def search_space(problem: Problem, operation: Operation, default: TritonConfig, capability: int) -> list[TritonConfig]:
    """Return the default, then the configs of an operation that could run, the cheapest first.

    Args:
        problem, operation: what is tuned.
        default: the backend's default config.
        capability: of the GPU, 90 for sm_90.
    """
    space = _Space(problem, operation, default, capability)
    made = {"pool": _pool, "route": _route, "attend": _attend, "attend_backward": _backward}[operation](space)
    others = [one for one in dict.fromkeys(replace(default, **fields) for fields in made) if one != default]
    return [default, *space.ranked(others)][: MOST[operation]]


class _Space:
    """A problem, and what of it bounds the tiles."""

    def __init__(self, problem: Problem, operation: Operation, default: TritonConfig, capability: int) -> None:
        self.problem, self.operation, self.default, self.capability = problem, operation, default, capability
        self.geometry = geometry(problem.plan, False)
        self.slots = problem.plan.slots
        rectangles = self.geometry.rectangles
        self.anchored = len(rectangles.q_lo) > 0
        self.rows, self.chunk = self.geometry.rows, self.geometry.most_chunk
        self.span = int((rectangles.k_hi - rectangles.k_lo).max(initial=1))

    def ranked(self, configs: Iterable[TritonConfig]) -> list[TritonConfig]:
        """Return the configs that could run, the cheapest first."""
        costs = {one: estimate(self.problem, self.operation, one, self.capability) for one in configs}
        possible = [one for one, cost in costs.items() if cost.reason is None]
        return sorted(possible, key=lambda one: costs[one].seconds or 0.0)

    def best(self, kernel: str, rows: int, keys: int, most: int) -> list[Fields]:
        """Return the best tiles of a kernel, as fields: the default's, then those near it by the cost model.

        Args:
            kernel: what the names of its fields begin with.
            rows, keys: most that a tile can hold.
            most: of them. A tile comes once, with the stages that are best for it, before any comes with others.
        """
        names = [f"{kernel}_{name}" for name in ("rows", "keys", "warps", "stages")]
        own = [getattr(self.default, name) for name in names]
        values = (
            [value for value in _near(own[0], _TILE) if value <= _power(rows)],
            [value for value in _near(own[1], _TILE) if value <= _power(keys)],
            _near(own[2], _WARPS),
            range(max(own[3] - 1, _STAGES[0]), min(own[3] + 1, _STAGES[1]) + 1),
        )
        made: list[Fields] = [dict(zip(names, one, strict=True)) for one in product(*values)]
        configs = {replace(self.default, **fields): fields for fields in made}
        first = dict(zip(names, own, strict=True))
        seen = {tuple(own[:3])}
        once: list[Fields] = [first]
        again: list[Fields] = []
        for fields in (configs[one] for one in self.ranked(configs)):
            tile = tuple(fields.values())[:3]
            (again if tile in seen else once).append(fields)
            seen.add(tile)
        return [*once, *(fields for fields in again if fields != first)][:most]


def _near(value: int, bounds: tuple[int, int]) -> list[int]:
    """Return half the value, it, and twice, within bounds."""
    return [one for one in (value // 2, value, 2 * value) if bounds[0] <= one <= bounds[1]]


def _power(length: int) -> int:
    """Return the length of the shortest tile that holds it whole."""
    return max(_TILE[0], int(triton.next_power_of_2(length)))


def _pool(space: _Space) -> Iterator[Fields]:
    for keys in (8, 16, 32, 64, 128, 256):
        if keys <= _power(space.chunk):
            yield {"pool_keys": keys}


def _route(space: _Space) -> Iterator[Fields]:
    """Yield tiles of routing, one of those that head_dim, dtype and slots fit to the same; and of route dropout."""
    problem, default = space.problem, space.default
    if not space.slots:
        return
    unit, window = isinstance(problem.plan.spec.unit, Block), space.geometry.reach >= 0
    count = _power(len(space.geometry.units.unit_row))
    seen = set()
    for units, chunks, warps in product((64, 32, 128), (32, 16, 64, 128), (4, 2, 8)):
        fields: Fields = {"route_units": units, "route_chunks": chunks, "route_warps": warps}
        config = replace(default, **fields)
        made = route_constants(config, problem.head_dim, problem.dtype, space.slots, problem.group, unit, window)
        effect = (*made.values(), warps)
        if effect not in seen and chunks <= _power(space.geometry.chunks) and made["UNITS"] <= count:
            seen.add(effect)
            yield fields
    if problem.plan.spec.dropout is not None:
        seen = {tuple(drop_constants(default, space.slots, unit, window).values())}
        for units, chunks in product((32, 16, 64), (32, 16, 64)):
            fields = {"drop_units": units, "drop_chunks": chunks}
            effect = tuple(drop_constants(replace(default, **fields), space.slots, unit, window).values())
            if effect not in seen:
                seen.add(effect)
                yield fields


def _attend(space: _Space) -> Iterator[Fields]:
    """Yield tiles of the anchors with tiles of the routes; then changes of the default in what is left."""
    default = space.default
    union = shares_routes(space.geometry, default)
    anchors, routes = space.anchored or union, space.slots > 0 and not union
    most = _COMBINED if anchors and routes else _ALONE
    keys = max(space.span, space.chunk) if union else space.span
    tiles = space.best("anchor", space.rows, keys, most) if anchors else [{}]
    for one, other in product(tiles, space.best("routed", space.rows, space.chunk, most) if routes else [{}]):
        yield one | other
    for kernel in (["anchor"] if anchors else []) + (["routed"] if routes else []):
        yield from _stages(space, kernel)
    for rows, warps in product((8, 16, 32), (2, 4)):
        yield {"merge_rows": rows, "merge_warps": warps}
    yield {"merge_float32": not default.merge_float32} if space.problem.dtype != "float32" else {}
    if space.slots and isinstance(space.problem.plan.spec.unit, Block):
        yield {"anchor_union": 1 if not union else space.problem.plan.q_tokens + space.problem.plan.spec.unit.n}
    if max(one.overlap * one.span for one in workloads(space.problem.plan)) > default.anchor_split // 2:
        yield from ({"anchor_split": default.anchor_split // 2}, {"anchor_split": default.anchor_split * 2})
    if routes:
        yield from _index(space)


def _backward(space: _Space) -> Iterator[Fields]:
    """Yield tiles of the gradients, where dq has a fixed order with tiles of that; then changes in what is left."""
    default, fixed = space.default, space.problem.deterministic
    ordered = fixed or not default.grad_atomic
    keys = max(space.span, space.chunk)
    queries = space.best("grad_query", space.rows, keys, _COMBINED) if ordered else [{}]
    for one, other in product(space.best("grad", space.rows, space.chunk, _COMBINED if ordered else _ALONE), queries):
        yield one | other
    yield from _stages(space, "grad")
    if not fixed:
        yield {"grad_atomic": not default.grad_atomic}
    yield from ({"grad_segment": default.grad_segment // 2}, {"grad_segment": default.grad_segment * 2})
    yield from ({"grad_parts": default.grad_parts // 2}, {"grad_parts": default.grad_parts * 2})
    if space.slots:
        yield from _index(space)


def _stages(space: _Space, kernel: str) -> Iterator[Fields]:
    """Yield one stage less and one more of a kernel's default: what the cost model knows least of."""
    own = getattr(space.default, f"{kernel}_stages")
    for stages in (own - 1, own + 1):
        if _STAGES[0] <= stages <= _STAGES[1]:
            yield {f"{kernel}_stages": stages}


def _index(space: _Space) -> Iterator[Fields]:
    """Yield rows and entries of the index: tiles have as many rows as there are chunks, at least."""
    least = int(triton.next_power_of_2(space.geometry.chunks))
    for rows in (space.default.index_rows // 2, space.default.index_rows * 2):
        if max(rows, least) != max(space.default.index_rows, least) and rows // 2 < space.rows:
            yield {"index_rows": rows}
    own = index_constants(space.default, space.slots)
    for entries in (space.default.index_entries // 2, space.default.index_entries * 2):
        if index_constants(replace(space.default, index_entries=entries), space.slots) != own:
            yield {"index_entries": entries}

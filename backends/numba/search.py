"""The configs worth trying on the CPU: products of tile sizes, the most promising by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import ceil
from typing import Any

from sparsemoc.backends.numba.config import NumbaConfig
from sparsemoc.backends.numba.cost import estimate
from sparsemoc.backends.numba.intrinsics import STRIP
from sparsemoc.backends.protocol import Operation, Problem
from sparsemoc.spec.sample_plan import SamplePlan

#: Most configs of an operation, the default among them.
MOST = 40
#: Values besides the default's. Rows of the backward come in whole strips, about.
_BLOCKS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_KEY_TILES = (64, 128, 192, 256, 384, 512)
_GRAD_BLOCKS = (512, 1024, 2048, 4096, 8192)
_GRAD_ROWS = (28, 56, 84, 112)
_GRAD_KEYS = (64, 128, 192, 256, 384, 512)


def search_space(problem: Problem, operation: Operation, default: NumbaConfig, threads: int) -> list[NumbaConfig]:
    """Return the default, then the configs of an operation that cut the problem in another way, the cheapest first.

    pool and route have no tile sizes: there it is the default alone. Of configs that cut this problem alike the
    one with most of the default's values is kept, so a block that is longer than the sample appears once.

    Args:
        problem, operation: what is tuned.
        default: the backend's default config.
        threads: that the estimates count with.
    """
    if operation in ("pool", "route"):
        return [default]
    cut, made = (_forward_cut, _forward(default)) if operation == "attend" else (_backward_cut, _backward(default))
    found: dict[Any, NumbaConfig] = {cut(problem, default): default}
    for config in made:
        found.setdefault(cut(problem, config), config)
    _, *others = found.values()
    return [default, *sorted(others, key=lambda one: _seconds(problem, operation, one, threads))][:MOST]


def _seconds(problem: Problem, operation: Operation, config: NumbaConfig, threads: int) -> float:
    return estimate(problem, operation, config, threads).seconds or 0.0


def _forward(default: NumbaConfig) -> Iterator[NumbaConfig]:
    """Yield configs whose blocks have one size: `gathered` has a say between two bounds, and these are one."""
    for block, tile in product((None, *_BLOCKS), (default.key_tile, *_KEY_TILES)):
        sizes = {} if block is None else {"query_block": block, "query_block_max": block}
        yield replace(default, key_tile=tile, **sizes)


def _backward(default: NumbaConfig) -> Iterator[NumbaConfig]:
    tall = [max(1, round(rows / STRIP)) * STRIP for rows in _GRAD_ROWS]
    sizes = (default.grad_block, *_GRAD_BLOCKS), (default.grad_rows, *tall), (default.grad_keys, *_GRAD_KEYS)
    for block, rows, keys in product(*sizes):
        yield replace(default, grad_block=block, grad_rows=rows, grad_keys=keys)


def _forward_cut(problem: Problem, config: NumbaConfig) -> tuple[Any, ...]:
    """Return into what a config cuts a problem: blocks of queries, tiles of each length of keys."""
    blocks = [len(config.forward_blocks(problem.plan, one.q_tokens, one.chunks)) for one in problem.plan.samples]
    return tuple(blocks), _tiles(problem, config.key_tile)


def _backward_cut(problem: Problem, config: NumbaConfig) -> tuple[Any, ...]:
    """Return the same of the backward, whose blocks are of queries and of keys."""
    counts = [
        ceil(tokens / config.grad_block) for one in problem.plan.samples for tokens in (one.q_tokens, one.k_tokens)
    ]
    rows = min(config.grad_rows, config.grad_block, max(one.q_tokens for one in problem.plan.samples))
    return tuple(counts), rows, _tiles(problem, config.grad_keys)


def _tiles(problem: Problem, size: int) -> tuple[int, ...]:
    return tuple(ceil(length / size) for one in problem.plan.samples for length in _lengths(one))


def _lengths(sample: SamplePlan) -> list[int]:
    """Return the lengths of keys that occur, of chunks and of rectangles of anchors."""
    spans = sample.anchor_rectangles
    found: list[int] = sorted({*sample.chunk_lengths.tolist(), *(spans.k_hi - spans.k_lo).tolist()})
    return found

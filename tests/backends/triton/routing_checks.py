"""The routing kernels run on a drawn problem, and their results held against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.protocol import Randomness
from sparsemoc.backends.triton import routing
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import DeviceTables, device_tables
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.testing import checks, oracle, oracle_random
from sparsemoc.testing.libraries import library
from sparsemoc.testing.problems import Problem

CPU = torch.device("cpu")
TORCH = library("torch", "cpu")
#: Tiles so small that problems of a few tokens fill several.
SMALL = TritonConfig(
    pool_keys=4, route_units=16, route_chunks=16, drop_units=16, drop_chunks=16, index_rows=16, index_entries=16
)


def shown(problem: Problem, x: Any) -> torch.Tensor:
    """Return an array of a problem as the backend is given it: rank 4, with the problem's strides."""
    given = TORCH.give(problem.present(x))
    given = given.transpose(-3, -2) if problem.axes == "bhsd" else given
    return given[None] if problem.packed else given


def plan_of(problem: Problem) -> Plan:
    streams = problem.streams if problem.packed else problem.streams[0]
    return plan(problem.spec, streams, q_start=problem.q_start, q_tokens=None if problem.packed else problem.queries)


def tables_of(problem: Problem) -> tuple[DeviceTables, Ends]:
    lengths = problem.key_length_array()
    tables = device_tables(plan_of(problem), lengths is not None, CPU)
    return tables, ends_of(tables.geometry, tables.keys, None if lengths is None else torch.from_numpy(lengths))


def routed(problem: Problem, config: TritonConfig, seed: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centroids and `selected`; with the problem's dropout where there is a seed."""
    tables, ends = tables_of(problem)
    k, q = shown(problem, problem.arrays.k), shown(problem, problem.arrays.q)
    randomness = None if seed is None else Randomness(seed, problem.batch_start, problem.head_start)
    top_k = problem.spec.top_k_of(problem.heads)
    slots = tables.geometry.plan.slots
    # Infinite numbers make NumPy, in which the interpreter computes, warn.
    with np.errstate(all="ignore"):
        centroids = routing.pool(tables, k, ends, config)
        return centroids, routing.route(
            tables, q, centroids, ends, top_k, slots, randomness, problem.spec.dropout, config
        )


def check_selection(problem: Problem, selected: np.ndarray[Any, Any]) -> None:
    """The suite's own rule: nothing left out surely precedes anything taken."""
    plain = problem.but(training=False, seed=None)
    for sample, rows in zip(plain.samples(), checks.selections(plain, selected), strict=True):
        checks.check_sample_selection(sample, rows)


def check_dropout(problem: Problem, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> None:
    """Exactly what the random words make of the routes."""
    dropout = problem.spec.dropout
    assert dropout is not None
    assert problem.seed is not None
    cut = (problem.samples(), checks.selections(problem, before), checks.selections(problem, after))
    for sample, routes, found in zip(*cut, strict=True):
        wanted = np.full_like(found, -1)
        for number, unit in enumerate(sample.units):
            candidates = np.flatnonzero(sample.candidates[number]).tolist()
            for head in range(sample.heads):
                row = routes[head, unit.queries[0]]
                place = (sample.batch, sample.head_start + head, unit.first)
                kept = oracle_random.drop(dropout, row[row >= 0].tolist(), candidates, place, problem.seed)
                wanted[head, list(unit.queries), : len(kept)] = kept
        np.testing.assert_array_equal(found, wanted)


def check_centroids(problem: Problem, centroids: np.ndarray[Any, Any]) -> None:
    """Within the rounding of a float32 sum over the valid keys; NaN where a valid key is NaN."""
    means, sizes = [], []
    for sample in problem.samples():
        means.append(oracle.centroids(sample).swapaxes(0, 1))
        sizes.append(oracle.centroids(sample, np.abs(sample.k.astype(np.float64))).swapaxes(0, 1))
    wanted, size = (np.concatenate(x, axis=1)[None] if problem.packed else np.stack(x) for x in (means, sizes))
    assert centroids.shape == wanted.shape
    np.testing.assert_array_equal(np.isnan(centroids), np.isnan(wanted))
    bound = (problem.tokens + 2) * 2.0**-24 * size
    assert not (np.abs(centroids - wanted) > bound).any()


def check_index(problem: Problem, selected: torch.Tensor, config: TritonConfig) -> None:
    """The chunk-major form of the layout, and a running sum of tiles."""
    tables, _ = tables_of(problem)
    found = routing.index(tables, selected, config)
    wanted = Layout(selected.numpy(), plan_of(problem), problem.key_length_array()).chunk_major()
    batch, heads, _, slots = selected.shape
    ptr = wanted.ptr - wanted.ptr[..., :1]
    np.testing.assert_array_equal(found.ptr.numpy(), ptr)
    entries = wanted.query * slots + wanted.slot
    start = 0
    for b in range(batch):
        for h in range(heads):
            count = int(ptr[b, h, -1])
            np.testing.assert_array_equal(found.entries[b, h, :count].numpy(), entries[start : start + count])
            start += count
    for rows in (1, 16):
        tiles = np.cumsum(-(-np.diff(ptr) // rows), axis=-1)
        np.testing.assert_array_equal(found.tile_ptr(rows).numpy()[..., 1:], tiles)
        assert not found.tile_ptr(rows)[..., 0].any()


def check_problem(problem: Problem, config: TritonConfig = SMALL) -> None:
    """Run pool, route, dropout and index, and check each."""
    centroids, selected = routed(problem, config)
    check_centroids(problem, centroids.numpy())
    check_selection(problem, selected.numpy())
    check_index(problem, selected, config)
    if problem.seed is not None:
        _, dropped = routed(problem, config, problem.seed % 2**64)
        check_dropout(problem, selected.numpy(), dropped.numpy())
        check_index(problem, dropped, config)

"""Ends of valid tokens, and means of chunks and of routing units, in the emulator against NumPy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy import routing
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.plan import plan
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from tests.backends.cupy.routing_checks import DTYPES, SMALL, of_dtype, tables_of

pytestmark = pytest.mark.usefixtures("either_order")
STREAM = Stream((Segment("text", 5), Segment("video", 34, shot=0), Segment("audio", 1), Segment("video", 29, shot=1)))
SPEC = RoutingSpec(chunks=Chunks(size=12), top_k=2)
LENGTHS = np.array([[2, 31, 0, 29], [5, 99, 1, -3]], np.int32)


def valid(lengths: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return (batch, tokens), whether each token is valid."""
    shown = np.zeros((len(lengths), STREAM.tokens), bool)
    for row, own in zip(shown, lengths, strict=True):
        for segment, (start, length) in enumerate(zip(STREAM.bounds[:-1], own.tolist(), strict=True)):
            row[start : min(start + max(length, 0), STREAM.bounds[segment + 1])] = True
    return shown


def means(x: NDArray[Any], shown: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (batch, heads, parts, width), the mean of the shown rows of each part; 0 where there are none."""
    found = np.zeros((x.shape[0], x.shape[2], len(bounds) - 1, x.shape[3]))
    for b in range(x.shape[0]):
        for part, (lo, hi) in enumerate(pairwise(bounds)):
            rows = x[b, lo:hi][shown[b, lo:hi]].astype(np.float64)
            found[b, :, part] = rows.mean(axis=0) if len(rows) else 0
    return found


def numbers(dtype: str, *shape: int) -> NDArray[Any]:
    """Return small whole numbers: float32 holds their sums, so that a mean has one right value."""
    return of_dtype(np.random.default_rng(0).integers(-99, 100, shape), dtype)


def test_ends() -> None:
    found = plan(SPEC, STREAM)
    _, ends = tables_of(found, LENGTHS)
    shown, bounds = valid(LENGTHS), found.samples[0].chunk_bounds
    for b in range(2):
        counts = np.add.reduceat(shown[b].astype(int), bounds[:-1])
        np.testing.assert_array_equal(ends.stops[b], bounds[:-1] + counts)
        tokens = np.add.reduceat(shown[b].astype(int), STREAM.bounds[:-1])
        np.testing.assert_array_equal(ends.ends[b], np.array(STREAM.bounds[:-1]) + tokens)
    assert (ends.stride, ends.segment_stride) == (len(bounds) - 1, 4)


def test_ends_of_a_packed_batch() -> None:
    streams = (Stream((Segment("video", 7),)), Stream((Segment("text", 3), Segment("video", 5))))
    found = plan(RoutingSpec(chunks=Chunks(size=4)), streams)
    _, ends = tables_of(found, np.array([[6, 0], [3, 1]], np.int32))
    np.testing.assert_array_equal(ends.stops, [[4, 6, 10, 11, 13]])
    np.testing.assert_array_equal(ends.ends, [[6, 10, 11]])
    assert (ends.stride, ends.segment_stride) == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [3, 72, 256])
def test_means_of_chunks_are_rounded_once(dtype: str, head_dim: int) -> None:
    found, k = plan(SPEC, STREAM), numbers(dtype, 2, STREAM.tokens, 2, head_dim)
    tables, ends = tables_of(found, LENGTHS)
    wanted = means(k, valid(LENGTHS), found.samples[0].chunk_bounds).astype(np.float32)
    # Padding may hold anything.
    k[~valid(LENGTHS)] = np.nan
    np.testing.assert_array_equal(routing.pool(tables, k, ends, SMALL), wanted)
    # Rows of no alignment, and none that are dense.
    turned = np.swapaxes(np.ascontiguousarray(np.swapaxes(k, 1, 3)), 1, 3)
    np.testing.assert_array_equal(routing.pool(tables, turned, ends, SMALL), wanted)


def test_sums_are_right_to_float32() -> None:
    stream = Stream((Segment("video", 1500),))
    found = plan(RoutingSpec(chunks=Chunks(size=None)), stream)
    tables, ends = tables_of(found)
    k = 1 + np.random.default_rng(1).standard_normal((1, 1500, 1, 8), np.float32)
    wanted = means(k, np.ones((1, 1500), bool), np.array([0, 1500]))
    np.testing.assert_allclose(routing.pool(tables, k, ends, SMALL), wanted, rtol=2e-7)


def test_a_valid_nan_is_the_mean() -> None:
    tables, ends = tables_of(plan(SPEC, STREAM))
    k = np.zeros((1, STREAM.tokens, 1, 8), np.float32)
    k[0, 7, 0, 3] = np.nan
    found = np.isnan(routing.pool(tables, k, ends, SMALL))
    assert found[0, 0, 1, 3]
    assert found.sum() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_of_units(dtype: str) -> None:
    found = plan(RoutingSpec(chunks=Chunks(size=12), unit=Block(5)), STREAM, q_start=20, q_tokens=47)
    tables, ends = tables_of(found, LENGTHS)
    x = numbers(dtype, 2, STREAM.tokens, 3, 20)
    units = tables.geometry.units
    edges = np.append(units.unit_row, 47) + 20
    wanted = means(x, valid(LENGTHS), edges).astype(np.float32)
    x[~valid(LENGTHS)] = np.inf
    np.testing.assert_array_equal(routing.pool_units(tables, x[:, 20:67], ends, SMALL), wanted)

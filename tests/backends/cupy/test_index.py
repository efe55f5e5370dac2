"""The chunk-major index in the emulator, against stable sorts of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy.index import Index, index, split_ptr
from sparsemoc.backends.cupy.tables import device_key_tiles
from sparsemoc.backends.planning.key_tiles import KeySizes, Segments
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from tests.backends.cupy.routing_checks import MACHINE, SMALL, tables_of

pytestmark = pytest.mark.usefixtures("either_order")


def selection(found: Plan, slots: int, batch: int = 2, heads: int = 3) -> NDArray[np.int32]:
    """Return chunks drawn unevenly, so that some are never chosen and others often; some entries are empty."""
    rng = np.random.default_rng(0)
    chunks = min(sample.chunks for sample in found.samples)
    drawn = np.minimum(rng.geometric(0.1, (batch, heads, found.q_tokens, slots)) - 2, chunks - 1)
    return drawn.astype(np.int32)


def check(found: Index, numbers: NDArray[np.int32], chunks: int) -> None:
    """Compare with a stable sort of chunk numbers over all samples, -1 for none."""
    for b, h in np.ndindex(*numbers.shape[:2]):
        flat = numbers[b, h].reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] >= 0]
        counts = np.bincount(flat[flat >= 0], minlength=chunks)
        np.testing.assert_array_equal(found.ptr[b, h], np.append(0, np.cumsum(counts)))
        np.testing.assert_array_equal(found.entries[b, h, : len(order)], order)
        for rows in (1, 7):
            tiles = np.append(0, np.cumsum(-(-counts // rows)))
            np.testing.assert_array_equal(found.tile_ptr(rows)[b, h], tiles)


@pytest.mark.parametrize(("tokens", "chunks", "slots"), [(37, 1, 1), (83, 5, 3), (1500, 300, 2), (70, 70, 33)])
def test_index(tokens: int, chunks: int, slots: int) -> None:
    found = plan(RoutingSpec(chunks=Chunks(size=-(-tokens // chunks))), Stream((Segment("video", tokens),)))
    tables, _ = tables_of(found)
    selected = selection(found, slots)
    fault = MACHINE.zeros((4,), "uint32")
    check(index(tables, selected, SMALL, fault), selected, tables.geometry.chunks)
    assert not fault.any()


def test_samples_are_numbered_together() -> None:
    streams = tuple(Stream((Segment("video", tokens),)) for tokens in (30, 7, 41))
    found = plan(RoutingSpec(chunks=Chunks(size=4)), streams)
    tables, _ = tables_of(found)
    selected = selection(found, 3, batch=1)
    base = np.repeat([0, 8, 10], [30, 7, 41])[:, None]
    check(index(tables, selected, SMALL, None), np.where(selected < 0, -1, selected + base), 21)


def test_no_slots() -> None:
    found = plan(RoutingSpec(chunks=Chunks(size=4), top_k=0), Stream((Segment("video", 9),)))
    tables, _ = tables_of(found)
    empty = index(tables, np.zeros((1, 2, 9, 0), np.int32), SMALL, None)
    assert empty.entries.shape == (1, 2, 0)
    assert not empty.ptr.any()
    assert not empty.tile_ptr(4).any()


@pytest.mark.parametrize("wrong", [-2, 8, 2**31 - 1])
def test_a_chunk_that_the_sample_does_not_have_is_reported_and_absent(wrong: int) -> None:
    streams = tuple(Stream((Segment("video", tokens),)) for tokens in (30, 41))
    found = plan(RoutingSpec(chunks=Chunks(size=4)), streams)
    tables, _ = tables_of(found)
    selected = selection(found, 2, batch=1, heads=1)
    selected[0, 0, 11, 1] = wrong
    fault = MACHINE.zeros((4,), "uint32")
    base = np.repeat([0, 8], [30, 41])[:, None]
    numbers = np.where(selected < 0, -1, selected + base)
    numbers[0, 0, 11, 1] = -1
    check(index(tables, selected, SMALL, fault), numbers, 19)
    assert fault[0] == 1
    assert (fault[2].astype(np.int64), fault[3]) == (wrong % 2**32, 11)


def test_split_ptr() -> None:
    found = plan(RoutingSpec(chunks=Chunks(size=16)), Stream((Segment("text", 9), Segment("video", 93))))
    tables, _ = tables_of(found)
    selected, group = selection(found, 2, heads=4), 2
    tiles = device_key_tiles(tables, KeySizes(keys=7, rows=8, segment=16, parts=64))
    lists = index(tables, selected, SMALL, None)
    starts = split_ptr(tiles, Segments(segment=3, parts=64), lists, group, 8)
    for b, h in np.ndindex(2, 2):
        heads = selected[b, h * group : (h + 1) * group].reshape(group, -1)
        counts = [np.bincount(row[row >= 0], minlength=tables.geometry.chunks) for row in heads]
        routed = (-(-np.array(counts) // 8)).sum(axis=0)
        work = tiles.work * group + routed[tiles.tile_chunk]
        parts = np.where(work > 3, -(-work // 3), 0)
        np.testing.assert_array_equal(starts[b, h], np.append(0, np.cumsum(parts)))
        assert parts.any()

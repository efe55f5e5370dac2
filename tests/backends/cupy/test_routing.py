"""Routing and route dropout in the emulator, against sorts of NumPy and the random words of the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy import routing, routing_tiles
from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.protocol import Randomness
from sparsemoc.spec.anchors import Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from tests.backends.cupy.routing_checks import DTYPES, MACHINE, SMALL, dropped, of_dtype, selection, tables_of

pytestmark = pytest.mark.usefixtures("either_order")
#: Eighty tokens of three kinds, in chunks of 2: more than one word of candidates, more than one tile of every kind.
STREAM = Stream((Segment("text", 5), Segment("video", 34, shot=0), Segment("audio", 12, shot=1), Segment("video", 29)))
SPEC = RoutingSpec(chunks=Chunks(size=2), top_k=(5, 1), anchors=("chunk", Window(7)), causal="chunk")
LENGTHS = np.array([[2, 31, 12, 0], [5, 34, 1, 17]], np.int32)
DROPOUT = RouteDropout(off=0.9, into=2.0, into_max=3)


def whole(dtype: str, *shape: int, seed: int = 0) -> NDArray[Any]:
    """Return small whole numbers: scores are exact, and often the same."""
    return of_dtype(np.random.default_rng(seed).integers(-2, 3, shape), dtype)


def operands(found: Plan, dtype: str = "float32", batch: int = 2, heads: int = 2, dim: int = 20) -> tuple[Any, Any]:
    """Return queries and centroids of whole numbers, one key head."""
    chunks = sum(sample.chunks for sample in found.samples)
    return whole(dtype, batch, found.q_tokens, heads, dim), whole("float32", batch, 1, chunks, dim, seed=1)


def route(
    found: Plan,
    q: NDArray[Any],
    centroids: NDArray[Any],
    lengths: NDArray[np.int32] | None = None,
    config: CupyConfig = SMALL,
    randomness: Randomness | None = None,
) -> NDArray[np.int32]:
    """Route a plan, without a fault."""
    tables, ends = tables_of(found, lengths)
    fault = MACHINE.zeros((4,), "uint32")
    top_k, spec = found.spec.top_k_of(q.shape[2]), found.spec
    selected: NDArray[np.int32] = routing.route(
        tables, q, centroids, ends, top_k, found.slots, randomness, spec.dropout, config, fault
    )
    assert not fault.any()
    return selected


def check(found: Plan, q: Any, centroids: Any, lengths: Any = None, config: CupyConfig = SMALL) -> None:
    """Compare a selection with NumPy's."""
    wanted = selection(found, q, centroids, found.spec.top_k_of(q.shape[2]), lengths)
    assert (wanted >= 0).any() or found.slots == 0 or max(found.spec.top_k_of(q.shape[2])) == 0
    np.testing.assert_array_equal(route(found, q, centroids, lengths, config), wanted)


# ---- selection -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("unit", ["token", Block(5)])
def test_ties_go_to_the_lower_chunk(dtype: str, lengths: Any, unit: Any) -> None:
    found = plan(replace(SPEC, unit=unit), STREAM)
    check(found, *operands(found, dtype), lengths)


@pytest.mark.parametrize("causal", ["none", "chunk", "token"])
@pytest.mark.parametrize("anchors", [("text", "chunk"), (Window(3), "shot"), (Window(1, "chunk"),)])
def test_candidates(causal: Any, anchors: Any) -> None:
    spec = RoutingSpec(chunks=Chunks(size=3), top_k=4, anchors=anchors, causal=causal, unit=Block(2))
    found = plan(spec, STREAM, q_start=31, q_tokens=43)
    check(found, *operands(found), LENGTHS)


@pytest.mark.parametrize("causal", ["none", "chunk"])
def test_a_window_of_some_rows_of_a_block_covers_no_chunk(causal: Any) -> None:
    """Of rows c ... c + 4 the windows of the first hold the chunks of 6 on either side, those of the last do not."""
    spec = RoutingSpec(chunks=Chunks(size=6, tail="short"), top_k=1, anchors=(Window(9),), causal=causal, unit=Block(5))
    found = plan(spec, Stream((Segment("video", 36),)))
    q = np.ones((1, 36, 1, 2), np.float32)
    check(found, q, np.arange(12, dtype=np.float32).reshape(1, 1, 6, 2))
    check(found, q, -np.arange(12, dtype=np.float32).reshape(1, 1, 6, 2))


def test_a_window_covers_what_other_anchors_leave() -> None:
    """Row 8: its frame holds the end of its chunk, positions 8 to 11, and its window the rest, 6 and 7."""
    spec = RoutingSpec(chunks=Chunks(size=6), top_k=2, anchors=("frame", Window(2)))
    found = plan(spec, Stream((Segment("video", grid=(3, 2, 2)),)))
    q, centroids = whole("float32", 1, 12, 1, 2), whole("float32", 1, 1, 2, 2, seed=1)
    check(found, q, centroids)
    assert route(found, q, centroids)[0, 0, 8].tolist() == [0, -1]


@pytest.mark.parametrize("unit", ["token", Block(4)])
def test_samples_of_a_packed_batch_route_for_themselves(unit: Any) -> None:
    streams = tuple(Stream((Segment("text", 2), Segment("video", tokens))) for tokens in (31, 8, 47))
    found = plan(replace(SPEC, unit=unit), streams)
    check(found, *operands(found, batch=1), np.array([[2, 30], [1, 8], [2, 41]], np.int32))


@pytest.mark.parametrize("top_k", [0, 1, 2, 70, (0, 9)])
def test_any_number_of_routes(top_k: Any) -> None:
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=top_k, anchors=("chunk",), causal="chunk")
    found = plan(spec, Stream((Segment("video", 80),)))
    check(found, *operands(found, batch=1, dim=4))


def test_the_longest_lists() -> None:
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=512, anchors=())
    found = plan(spec, Stream((Segment("video", 520),)), q_tokens=2)
    check(found, *operands(found, batch=1, heads=1, dim=8))


@pytest.mark.parametrize(("dtype", "dim"), [("bfloat16", 128), ("float16", 72), ("float32", 256)])
def test_scores_are_right_to_float32(dtype: str, dim: int) -> None:
    """Scores of which no two are as near as float32 rounds, in the tiles of a GPU."""
    found, rng = plan(SPEC, STREAM), np.random.default_rng(3)
    q = of_dtype(rng.standard_normal((1, 80, 4, dim)), dtype)
    spec = replace(SPEC, top_k=5)
    check(replace(found, spec=spec), q, rng.standard_normal((1, 2, 41, dim), np.float32), config=CupyConfig())


SECOND, THIRD = 2.0**-9, 2.0**-23


@pytest.mark.parametrize(
    ("query", "best", "others"),
    [
        ([1, 0], [1 + THIRD, 0], [1, 0]),
        ([1, 0], [1 + SECOND + THIRD, 0], [1 + SECOND, 0]),
        ([1 + SECOND, 1], [1, 0], [0, 1]),
        ([1 + SECOND + THIRD, 1 + SECOND], [1, 0], [0, 1]),
        ([1 + SECOND, 1], [1 + SECOND, 0], [0, 1 + 2 * SECOND]),
    ],
)
def test_every_piece_of_queries_and_means_counts(query: Any, best: Any, others: Any) -> None:
    """Each case takes another product of bfloat16 pieces to tell the best mean from those before and after it."""
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=1, anchors=(), dense_queries=())
    centroids = np.full((1, 1, 8, 2), others, np.float32)
    centroids[0, 0, 5] = best
    q = np.full((1, 8, 1, 2), query, np.float32)
    assert (route(plan(spec, Stream((Segment("video", 8),))), q, centroids) == 5).all()


def test_order_of_special_scores() -> None:
    """NaN comes first, infinity times a piece that is 0 is none, and -0 is 0."""
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=3, anchors=(), dense_queries=())
    found = plan(spec, Stream((Segment("video", 5),)))
    q = np.array([np.inf, 1, 0, np.nan, -np.inf], np.float32).reshape(1, 5, 1, 1)
    centroids = np.array([-1, 0.5, np.nan, -0.0, 2], np.float32).reshape(1, 1, 5, 1)
    wanted = [[2, 3, 1], [2, 4, 1], [2, 0, 1], [0, 1, 2], [2, 3, 0]]
    np.testing.assert_array_equal(route(found, q, centroids)[0, 0], np.sort(wanted))


def test_rows_of_any_strides_and_groups_of_heads() -> None:
    found = plan(replace(SPEC, top_k=3), STREAM)
    q, centroids = whole("bfloat16", 1, 80, 6, 24), whole("float32", 1, 2, 41, 24, seed=1)
    wanted = selection(found, q, centroids, (3,) * 6)
    turned = np.swapaxes(np.ascontiguousarray(np.swapaxes(q, 1, 3)), 1, 3)
    wide = np.zeros((1, 2, 41, 48), np.float32)[..., ::2]
    wide[...] = centroids
    for shown in (q, turned):
        for means in (centroids, wide):
            np.testing.assert_array_equal(route(found, shown, means), wanted)


def test_what_padding_holds_changes_no_route() -> None:
    found = plan(replace(SPEC, unit=Block(3)), STREAM)
    q, centroids = operands(found)
    wanted = route(found, q, centroids, LENGTHS)
    for b, own in enumerate(LENGTHS):
        for start, stop, length in zip(STREAM.bounds[:-1], STREAM.bounds[1:], own, strict=True):
            q[b, start + length : stop] = np.nan
    np.testing.assert_array_equal(route(found, q, centroids, LENGTHS), wanted)


# ---- tiles -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_tiles_shrink_until_shared_memory_holds_them(capability: int, dtype: str, dim: int) -> None:
    most = routing_tiles.most_slots(dtype, dim, capability)
    assert most >= 64
    for routes in (1, 5, most):
        kernel = routing_tiles.route_kernel(dtype, dim, routes, CupyConfig(), capability)
        assert kernel.shared <= {80: 163, 86: 99, 90: 227}[capability] * 1024
    assert routing_tiles.route_kernel(dtype, dim, 5, CupyConfig(), 90).threads == 128


def test_more_routes_than_shared_memory_holds_are_refused() -> None:
    assert routing_tiles.most_slots("float32", 256, 86) == 128
    with pytest.raises(UnsupportedError, match=r"`top_k` must be at most 128 for float32 .* sm_86, got 129\. Hint"):
        routing_tiles.route_kernel("float32", 256, 129, CupyConfig(), 86)


# ---- route dropout ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("unit", ["token", Block(5)])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_dropout(unit: Any, lengths: Any) -> None:
    found = plan(replace(SPEC, unit=unit, dropout=DROPOUT), STREAM)
    q, centroids = operands(found)
    routes = route(found, q, centroids, lengths)
    randomness = Randomness(2**63 + 12345678901, 2**32 - 1, 7)
    wanted = dropped(found, routes, DROPOUT, randomness.seed, (2**32 - 1, 7), lengths)
    assert (wanted != routes).any()
    np.testing.assert_array_equal(route(found, q, centroids, lengths, randomness=randomness), wanted)


@pytest.mark.parametrize(
    "dropout", [RouteDropout(off=1.0), RouteDropout(into=30.0, into_max=40), RouteDropout(off=0.5)]
)
def test_dropout_of_a_packed_batch(dropout: RouteDropout) -> None:
    streams = tuple(Stream((Segment("text", 2), Segment("video", tokens))) for tokens in (31, 8, 147))
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=34, anchors=("chunk",), dropout=dropout)
    found = plan(spec, streams)
    q, centroids = operands(found, batch=1)
    wanted = dropped(found, route(found, q, centroids), dropout, 5)
    np.testing.assert_array_equal(route(found, q, centroids, randomness=Randomness(5)), wanted)


def test_a_seed_in_an_array_gives_the_same_routes() -> None:
    found = plan(replace(SPEC, dropout=DROPOUT), STREAM)
    q, centroids = operands(found)
    wanted = route(found, q, centroids, randomness=Randomness(2**63 + 5))
    held = Randomness(np.array(5 - 2**63))
    np.testing.assert_array_equal(route(found, q, centroids, randomness=held), wanted)


@pytest.mark.parametrize("wrong", [-2, 41])
def test_dropout_reports_a_chunk_that_the_plan_does_not_have(wrong: int) -> None:
    found = plan(replace(SPEC, dropout=RouteDropout(off=0.5)), STREAM)
    q, centroids = operands(found, batch=1)
    tables, ends = tables_of(found)
    selected, fault = route(found, q, centroids), MACHINE.zeros((4,), "uint32")
    selected[0, 1, 70, 0] = wrong
    assert found.spec.dropout is not None
    routing.drop(tables, selected, ends, tables.candidates(ends), Randomness(0), found.spec.dropout, fault)
    assert (fault[0], fault[2], fault[3]) == (1, wrong % 2**32, 70)
    assert (selected[0, 1, 70] == -1).all()

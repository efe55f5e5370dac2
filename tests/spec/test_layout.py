"""What a layout holds and counts, against the mask that the oracle makes of the same selection."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import sparsemoc as moc
from sparsemoc.spec.report import Report
from sparsemoc.testing.checks import masks, oracle_masks, selections
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import problems

STREAM = moc.Stream.multishot(shots=2, frames=2, height=2, width=3, caption=3, prompt=4)  # 34 tokens
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=5), top_k=2)
PLAN = moc.plan(SPEC)


def layout_of(problem: Problem) -> moc.Layout:
    arrays = problem.arrays
    options = {name: value for name, value in problem.options().items() if name not in ("scale", "axes")}
    return moc.route(arrays.q, arrays.k, problem.spec, **options, backend="reference")


@given(problem=problems(pairs=2**12))
def test_mask_pairs_density_and_flops_are_those_of_the_oracle(problem: Problem) -> None:
    layout = layout_of(problem)
    layout.validate()
    mask = layout.dense_mask()
    for found, expected in zip(masks(problem, mask), oracle_masks(problem, layout.selected), strict=True):
        np.testing.assert_array_equal(found, expected)
    pairs, samples = int(mask.sum()), problem.samples()
    assert layout.pairs() == pairs
    assert type(layout.pairs()) is int
    full = sum(int(sample.valid_queries.sum()) * int(sample.valid.sum()) for sample in samples) * problem.heads
    assert layout.density() == pytest.approx(pairs / full if full else 0)
    assert layout.flops(8) == 2 * pairs * 16
    assert layout.flops(8, 3) == 2 * pairs * 11


# Anchors that cut through chunks, that overlap each other, and that cover chunks only together.
OVERLAPS: dict[str, dict[str, Any]] = {
    "first tokens": {"anchors": (moc.first(7), moc.first(12))},
    "first of shots": {"anchors": (moc.first(4, of="shot"), moc.first(2, "frame", "shot"))},
    "frames over chunks": {"anchors": ("frame", moc.window(1, "frame")), "chunks": moc.Chunks(size=4)},
    "window over chunks": {"anchors": (moc.window(4), "chunk"), "chunks": moc.Chunks(size=3)},
    "window and first": {"anchors": (moc.window(6), moc.first(9))},
    "chunks and shots": {"anchors": (moc.window(1, "chunk"), "shot", "caption")},
    "token-causal": {"anchors": (moc.window(6), "frame", moc.first(9)), "causal": "token"},
    "blocks": {"anchors": (moc.window(6), moc.first(9)), "unit": moc.Block(3)},
    "past": {"anchors": (moc.first(3),), "dense_scope": "past", "causal": "chunk"},
}


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [(None, None), (9, 20)])
def test_overlapping_anchors_count_every_pair_once(name: str, padded: bool, queries: tuple[Any, Any]) -> None:
    problem = Problem(
        replace(SPEC, **OVERLAPS[name], top_k=3), (STREAM,), batch=2, heads=2, head_dim=4, q_start=queries[0],
        q_tokens=queries[1], key_lengths=((4, 3, 12, 3, 12), (2, 0, 7, 9, -1)) if padded else None,
    )  # fmt: skip
    layout = layout_of(problem)
    layout.validate()
    mask = layout.dense_mask()
    np.testing.assert_array_equal(mask, np.stack(oracle_masks(problem, layout.selected)))
    assert layout.pairs() == mask.sum()


def test_density_leaves_padding_out() -> None:
    lengths, q_start = ((4, 3, 12, 3, 12), (2, 0, 7, 9, -1)), 9  # the second row: 2 + 0 + 7 + 3 + 0 valid tokens
    problem = Problem(SPEC, (STREAM,), batch=2, heads=2, head_dim=4, q_start=q_start, q_tokens=20, key_lengths=lengths)
    layout = layout_of(problem)
    valid = [[i < n for s, n in zip(STREAM.segments, row, strict=True) for i in range(s.tokens)] for row in lengths]
    mask, pairs, full = layout.dense_mask(), 0, 0
    for b, h, i, j in np.ndindex(2, 2, 20, 34):
        if valid[b][q_start + i] and valid[b][j]:
            full += 1
            pairs += bool(mask[b, h, i, j])
    assert full == 2 * (20 * 34 + 8 * 12)
    assert layout.pairs() == pairs
    assert layout.density() == layout.report().density == pairs / full
    everything = moc.RoutingSpec(chunks=moc.Chunks(size=4), anchors=("segment",))
    keys = np.zeros((2, 8, 1, 4), np.float32)
    assert moc.route(keys, keys, everything, key_lengths=[[8], [3]], backend="reference").density() == 1
    assert moc.route(keys, keys, everything, key_lengths=[[0], [0]], backend="reference").density() == 0


@given(problem=problems(pairs=2**11))
@settings(max_examples=30)
def test_the_chunk_major_form_holds_each_route_once(problem: Problem) -> None:
    layout = layout_of(problem)
    turned = layout.chunk_major()
    shifted, total = layout.run_on()
    assert turned.ptr.shape == (layout.batch, layout.heads, total + 1)
    assert turned.ptr[0, 0, 0] == 0
    assert (np.diff(turned.ptr.ravel()) >= 0).all()
    assert turned.ptr[-1, -1, -1] == len(turned.query) == len(turned.slot) == (layout.selected >= 0).sum()
    assert [array.dtype.name for array in (turned.ptr, turned.query, turned.slot)] == ["int64", "int32", "int32"]
    for b, h, c in np.ndindex(layout.batch, layout.heads, total):
        part = slice(turned.ptr[b, h, c], turned.ptr[b, h, c + 1])
        query, slot = np.nonzero(shifted[b, h] == c)
        assert turned.query[part].tolist() == query.tolist()
        assert turned.slot[part].tolist() == slot.tolist()
    np.testing.assert_array_equal(turned.selected(layout.plan.q_tokens, layout.plan.slots), shifted)


def test_packed_chunk_numbers_run_on() -> None:
    streams = (moc.Stream((moc.Segment("video", 6),)), moc.Stream((moc.Segment("video", 4),)))
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=2), top_k=5, anchors=("chunk",))
    layout = layout_of(Problem(spec, streams, packed=True))
    assert (
        layout.selected[0, 0].tolist()
        == [[1, 2, -1]] * 2 + [[0, 2, -1]] * 2 + [[0, 1, -1]] * 2 + [[1, -1, -1]] * 2 + [[0, -1, -1]] * 2
    )
    assert selections(Problem(spec, streams, packed=True), layout.selected)[1][0].tolist()[0] == [1, -1, -1]
    turned = layout.chunk_major()
    assert turned.ptr.tolist() == [[[0, 4, 8, 12, 14, 16]]]
    assert turned.query.tolist() == [2, 3, 4, 5, 0, 1, 4, 5, 0, 1, 2, 3, 8, 9, 6, 7]


def test_making_a_layout_copies_nothing_and_reads_no_data() -> None:
    selected = np.full((2, 3, 34, 2), 99, np.int32)
    layout = moc.Layout(selected, PLAN)
    assert layout.selected is selected
    assert (layout.batch, layout.heads) == (2, 3)
    assert repr(layout) == "Layout(batch=2, heads=3, queries=34, keys=34, chunks=9, slots=2, unit=token)"
    blocks = moc.plan(replace(SPEC, unit=moc.Block(4)))
    assert repr(moc.Layout(selected, blocks)).endswith("unit=Block(4))")


def test_a_layout_can_be_pickled() -> None:
    layout = layout_of(Problem(SPEC, (STREAM,), heads=2, head_dim=4))
    again = pickle.loads(pickle.dumps(layout))
    np.testing.assert_array_equal(again.selected, layout.selected)
    assert again.plan == layout.plan
    assert again.pairs() == layout.pairs()


def test_no_slots_at_all() -> None:
    layout = layout_of(Problem(replace(SPEC, top_k=0), (STREAM,), batch=2, heads=2, head_dim=4))
    assert layout.selected.shape == (2, 2, 34, 0)
    layout.validate()
    assert layout.pairs() == layout.dense_mask().sum()
    assert layout.chunk_major().ptr.tolist() == np.zeros((2, 2, 10)).tolist()
    assert isinstance(layout.report(), Report)


def selected_of(shape: tuple[int, ...], dtype: Any = np.int32) -> Any:
    return np.full(shape, -1, dtype)


GOOD = selected_of((1, 2, 34, 2))
PACKED = moc.plan(replace(SPEC, stream=None), (STREAM, STREAM))

#: What is given, and the text of the error.
STRUCTURE: dict[str, tuple[Any, ...]] = {
    "no plan": (GOOD, "plan", None, "plan must be a Plan, got 'plan' (str). Hint: sparsemoc.plan(spec)."),
    "a list": ([[1]], PLAN, None, "selected must be int32 (batch, heads, queries, slots), got [[1]] (list)."),
    "rank 3": (GOOD[0], PLAN, None, "selected must be int32 (batch, heads, queries, slots), got int32 (2, 34, 2)."),
    "int64": (
        GOOD.astype(np.int64), PLAN, None,
        "selected must be int32 (batch, heads, queries, slots), got int64 (1, 2, 34, 2).",
    ),
    "queries": (
        selected_of((1, 2, 33, 2)), PLAN, None,
        "selected must have shape (batch, heads, queries, slots) = (batch, heads, 34, 2), got (1, 2, 33, 2). "
        "queries and slots come from the plan.",
    ),
    "slots": (
        selected_of((1, 2, 34, 3)), PLAN, None,
        "selected must have shape (batch, heads, queries, slots) = (batch, heads, 34, 2), got (1, 2, 34, 3). "
        "queries and slots come from the plan.",
    ),
    "a packed batch": (
        selected_of((2, 2, 68, 2)), PACKED, None, "selected must have batch 1 when packed, got 2.",
    ),
    "heads": (
        GOOD, moc.plan(replace(SPEC, top_k=(2, 1, 1))), None,
        "selected must have 3 heads, one for each top_k of the spec, got 2.",
    ),
    "lengths of another shape": (
        GOOD, PLAN, np.zeros((2, 5), np.int32),
        "key_lengths must be int32 (batch, segments) = (1, 5), got int32 (2, 5).",
    ),
    "lengths of another dtype": (
        GOOD, PLAN, np.zeros((1, 5)), "key_lengths must be int32 (batch, segments) = (1, 5), got float64 (1, 5).",
    ),
    "lengths in a list": (
        GOOD, PLAN, [[1] * 5],
        "key_lengths must be int32 (batch, segments) = (1, 5), got [[1, 1, 1, 1, 1]] (list).",
    ),
    "packed lengths": (
        selected_of((1, 2, 68, 2)), PACKED, np.zeros((1, 5), np.int32),
        "key_lengths must be int32 (samples, most segments) = (2, 5), got int32 (1, 5).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(name: str) -> None:
    selected, plan, lengths, text = STRUCTURE[name]
    with pytest.raises(moc.LayoutError) as raised:
        moc.Layout(selected, plan, lengths)
    assert str(raised.value) == "Layout: " + text


def test_flops_want_head_dims() -> None:
    layout = moc.Layout(GOOD, PLAN)
    with pytest.raises(moc.SpecError, match="flops: head_dim must be a whole number >= 1, got 0"):
        layout.flops(0)
    with pytest.raises(moc.SpecError, match="flops: v_head_dim must be a whole number >= 1, got '8'"):
        layout.flops(8, "8")  # type: ignore[arg-type]

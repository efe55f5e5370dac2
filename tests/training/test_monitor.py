"""The monitor: on any layout its numbers are those of the report, whatever library holds it, and nothing is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import sparsemoc as moc
from sparsemoc.spec.routing import Block
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from sparsemoc.training import LayerSummary, Monitor


def layout_of(problem: Problem) -> moc.Layout:
    arrays = problem.arrays
    options = {name: value for name, value in problem.options().items() if name not in ("scale", "axes")}
    return moc.route(arrays.q, arrays.k, problem.spec, **options, backend="reference")


def recorded(*layouts: moc.Layout) -> LayerSummary:
    monitor = Monitor()
    for layout in layouts:
        monitor.record("layer", layout)
    return monitor.summary()["layer"]


def pairs_by_head(layout: moc.Layout) -> list[int]:
    """Return the pairs of each head: those of a layout without the others' routes, less their anchors."""
    nothing = np.full_like(layout.selected, -1)
    anchored = replace(layout, selected=nothing).pairs() // layout.heads
    found = []
    for head in range(layout.heads):
        only = nothing.copy()
        only[:, head] = layout.selected[:, head]
        found.append(replace(layout, selected=only).pairs() - (layout.heads - 1) * anchored)
    return found


def expect_report(summary: LayerSummary, layout: moc.Layout) -> None:
    report = layout.report()
    [part] = summary.plans
    np.testing.assert_array_equal(part.chunk_load, report.chunk_load)
    assert part.dead_chunks == report.dead_chunks
    assert summary.dead_chunks.tolist() == [len(dead) for dead in report.dead_chunks]
    np.testing.assert_array_equal(summary.shot_matrix, report.shot_matrix)
    assert int(part.pairs.sum()) == report.pairs
    assert part.pairs.tolist() == pairs_by_head(layout)
    np.testing.assert_allclose(summary.density.mean(), layout.density(), rtol=1e-12)
    assert not summary.shot_matrix[:, ~summary.open_shots].any()


@given(problem=problems(pairs=2**11, packed=False))
@settings(max_examples=150)
def test_the_numbers_are_those_of_the_report(problem: Problem) -> None:
    layout = layout_of(problem)
    expect_report(recorded(layout), layout)


@given(problem=problems(pairs=2**11, packed=False, anchor=partial_anchors()))
@settings(max_examples=150)
def test_keys_that_are_anchors_and_routed_count_once(problem: Problem) -> None:
    layout = layout_of(problem)
    expect_report(recorded(layout), layout)


@given(problem=problems(pairs=2**11, packed=True))
@settings(max_examples=80)
def test_packed_samples_count_as_if_they_came_alone(problem: Problem) -> None:
    layout = layout_of(problem)
    summary = recorded(layout)
    assert sum(int(part.pairs.sum()) for part in summary.plans) == layout.pairs()
    np.testing.assert_allclose(summary.density.mean(), layout.density(), rtol=1e-12)
    assert summary.samples == len(problem.streams)
    if len(set(problem.streams)) == 1:
        [part] = summary.plans
        np.testing.assert_array_equal(part.chunk_load, layout.report().chunk_load)
        assert part.dead_chunks == layout.report().dead_chunks
        np.testing.assert_array_equal(summary.shot_matrix, layout.report().shot_matrix)


def test_large_layouts_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsemoc.training.array_ops import NumpyOps

    stream = moc.Stream.multishot(shots=3, frames=2, height=4, width=5, caption=3, prompt=2)
    spec = moc.RoutingSpec(chunks=moc.Chunks(7), top_k=2, anchors=("text", "shot", moc.first(4)), causal="chunk")
    layout = layout_of(Problem(spec, (stream,), batch=2, heads=4, kv_heads=2, head_dim=4))
    for most in (1, 17, 90, 1000):
        monkeypatch.setattr("sparsemoc.training.monitor.ops_of", lambda array, most=most: NumpyOps(most_entries=most))
        expect_report(recorded(layout), layout)


# Four shots of 40 tokens in chunks of 10, each anchored to itself.
STREAM = moc.Stream(tuple(moc.Segment("video", 40, shot=shot) for shot in range(4)))
SPEC = moc.RoutingSpec(chunks=moc.Chunks(10), top_k=1, anchors=("shot",))


def planted(chunks: tuple[int, ...], stream: moc.Stream = STREAM, spec: moc.RoutingSpec = SPEC) -> moc.Layout:
    """All queries of shot a route to one chunk, for each a; one head."""
    plan = moc.plan(spec, stream)
    return moc.Layout(np.repeat(np.array(chunks, np.int32), 40)[None, None, :, None], plan)


def test_records_of_a_layer_add_up() -> None:
    one, two = planted((4, 0, 0, 0)), planted((4, 0, 0, 4))
    summary = recorded(one, two, two)
    [part] = summary.plans
    assert part.chunk_load.tolist() == [[280, 0, 0, 0, 200] + [0] * 11]
    assert summary.shot_matrix[0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1 / 3, 2 / 3, 0, 0]]
    assert summary.samples == 3
    assert summary.dead_chunks.tolist() == [14]
    assert summary.dead_share.tolist() == [14 / 16]
    assert summary.density.tolist() == [50 / 160]
    shares = np.array([280, 200]) / 480
    np.testing.assert_allclose(summary.load_entropy, [-(shares * np.log(shares)).sum() / np.log(16)])


def test_the_entropy_of_even_load_is_1_and_of_one_chunk_or_none_0() -> None:
    plan = moc.plan(SPEC, STREAM)
    even = np.array([(query + 40) // 10 % 16 for query in range(160)], np.int32).reshape(1, 1, 160, 1)
    np.testing.assert_allclose(recorded(moc.Layout(even, plan)).load_entropy, [1])
    assert recorded(moc.Layout(np.full((1, 1, 160, 1), -1, np.int32), plan)).load_entropy.tolist() == [0]
    pair = moc.Stream(STREAM.segments[:2])
    only = replace(SPEC, chunks=moc.Chunks(40), causal="chunk")
    selected = np.repeat(np.array([-1, 0], np.int32), 40).reshape(1, 1, 80, 1)
    assert recorded(moc.Layout(selected, moc.plan(only, pair))).load_entropy.tolist() == [1]


def test_plans_of_one_layer_are_joined() -> None:
    short = moc.Stream(STREAM.segments[:2])
    long, small, fine = (
        planted((4, 0, 0, 0)),
        planted((4, 0), short),
        planted((8, 0), short, replace(SPEC, chunks=moc.Chunks(5))),
    )
    summary = recorded(long, small, fine)
    assert [part.plan for part in summary.plans] == [long.plan, small.plan, fine.plan]
    assert summary.samples == 3
    pairs = [layout.pairs() for layout in (long, small, fine)]
    assert summary.density.tolist() == [sum(pairs) / (160**2 + 2 * 80**2)]
    assert summary.dead_chunks.tolist() == [14 + 6 + 14]
    assert summary.dead_share.tolist() == [34 / 40]
    assert summary.shot_matrix.tolist() == [[[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]]
    entropies = [recorded(layout).load_entropy[0] for layout in (long, small, fine)]
    np.testing.assert_allclose(summary.load_entropy, [np.average(entropies, weights=[160, 80, 80])])


def test_a_chunk_that_is_routed_for_a_block_and_an_anchor_of_some_members_counts_once() -> None:
    # Frames of 2 tokens. The block of frames 0 and 1 may route to chunk 1, frame 2, which frame 1 sees already.
    stream = moc.Stream((moc.Segment("video", grid=(4, 1, 2)),))
    spec = moc.RoutingSpec(
        stream=stream,
        chunks=moc.Chunks(bounds=(0, 4, 6, 8)),
        top_k=1,
        anchors=(moc.window(1, "frame"),),
        unit=Block(4),
    )
    layout = moc.Layout(np.full((1, 1, 4, 1), 1, np.int32), moc.plan(spec, q_start=0, q_tokens=4))
    layout.validate()
    assert recorded(layout).plans[0].pairs.tolist() == [2 * (4 + 2) + 2 * 6]
    expect_report(recorded(layout), layout)


def test_shots_are_open_where_any_query_has_candidates() -> None:
    stream = moc.Stream((moc.Segment("video", 4, shot=0), moc.Segment("text", 1), moc.Segment("video", 20, shot=1)))
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(20), top_k=0, anchors=("chunk", moc.window(5)))
    layout = layout_of(Problem(spec, (stream,), head_dim=4))
    # The first query of shot 1 sees all of shot 0 by its window, the last one nothing of it.
    assert recorded(layout).open_shots.tolist() == [[False, True], [True, False]]
    causal = replace(spec, causal="chunk")
    assert recorded(layout_of(Problem(causal, (stream,), head_dim=4))).open_shots.tolist() == [
        [False] * 2,
        [True, False],
    ]


def test_scalars_for_loggers_are_plain_and_by_layer_and_head() -> None:
    problem = Problem(SPEC, (STREAM,), heads=3, head_dim=4)
    monitor = Monitor()
    monitor.record("blocks.0", layout_of(problem))
    monitor.record("blocks.1", layout_of(problem.but(data_seed=1)))
    summary = monitor.summary()
    plain = summary.to_dict()
    assert list(plain) == [
        f"blocks.{n}/{name}" for n in (0, 1) for name in ("density", "load_entropy", "dead_chunks", "dead_share")
    ]
    assert all(type(value) is float for value in plain.values())
    assert plain["blocks.1/load_entropy"] == summary["blocks.1"].load_entropy.mean()
    by_head = summary.to_dict(heads=True)
    assert by_head["blocks.0/head_2/density"] == summary["blocks.0"].density[2]
    assert json.loads(json.dumps(by_head, allow_nan=False)) == by_head
    assert len(by_head) == 8 + 24
    monitor.reset()
    assert monitor.summary().to_dict() == {}


def test_due_is_every_so_many_steps() -> None:
    assert [step for step in range(301) if Monitor().due(step)] == [0, 100, 200, 300]
    assert [step for step in range(10) if Monitor(every=4).due(step)] == [0, 4, 8]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Monitor(every=0), moc.SpecError, "Monitor: every must be a whole number >= 1, got 0 (int)."),
        (lambda: Monitor().due(-1), moc.SpecError, "Monitor.due: step must be a whole number >= 0, got -1 (int)."),
        (
            lambda: Monitor().record("", planted((4, 0, 0, 0))),
            moc.SpecError,
            "Monitor.record: layer must be a name, got '' (str). Hint: record(\"blocks.0\", layout).",
        ),
        (
            lambda: Monitor().record("a", 3),  # type: ignore[arg-type]
            moc.LayoutError,
            "Monitor.record: layout must be a Layout, got 3 (int). Hint: attention(..., return_layout=True) gives one.",
        ),
        (
            lambda: recorded(planted((4, 0, 0, 0)), layout_of(Problem(SPEC, (STREAM,), heads=2))),
            moc.LayoutError,
            "Monitor.record: layout must have the 1 heads that layer 'layer' had before, got 2. "
            "Hint: another name, or reset().",
        ),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == text

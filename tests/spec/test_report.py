"""The report of a layout: chunk load, dead chunks, the shot matrix and loop closures, against loops and plants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import sparsemoc as moc
from sparsemoc.testing.checks import selections
from sparsemoc.testing.oracle_rules import tokens_of
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import problems


def layout_of(problem: Problem) -> moc.Layout:
    arrays = problem.arrays
    options = {name: value for name, value in problem.options().items() if name not in ("scale", "axes")}
    return moc.route(arrays.q, arrays.k, problem.spec, **options, backend="reference")


@given(problem=problems(pairs=2**11, packed=False))
@settings(max_examples=40)
def test_the_counts_are_those_of_a_loop(problem: Problem) -> None:
    layout = layout_of(problem)
    report = layout.report()
    tokens, samples = tokens_of(problem.spec, problem.streams[0]), problem.samples()
    shots, chunks = int(tokens.shot.max(initial=-1)) + 1, int(tokens.chunk[-1]) + 1
    order = [shot for shot in dict.fromkeys(tokens.shot.tolist()) if shot >= 0]  # as they first appear
    load = np.zeros((problem.heads, chunks), int)
    asked = np.zeros(shots)
    hits = np.zeros((problem.heads, shots, shots))
    reachable: set[int] = set()
    for sample, selected in zip(samples, selections(problem, layout.selected), strict=True):
        reachable |= set(np.nonzero(sample.candidates)[1].tolist())
        for i in range(sample.q_tokens):
            own = int(tokens.shot[sample.q_start + i])
            if own >= 0 and sample.valid_queries[i] and not sample.dense[i]:
                asked[own] += 1
            for h in range(problem.heads):
                taken = [int(c) for c in selected[h, i] if c >= 0]
                for c in taken:
                    load[h, c] += 1
                for other in {int(tokens.shot[tokens.chunk == c][0]) for c in taken}:
                    if own >= 0 and other >= 0:
                        hits[h, own, other] += 1
    np.testing.assert_array_equal(report.chunk_load, load)
    assert report.dead_chunks == tuple(tuple(c for c in sorted(reachable) if not load[h, c]) for h in range(len(load)))
    ratio = hits / np.maximum(asked, 1)[None, :, None]
    np.testing.assert_allclose(report.shot_matrix, ratio[:, order][:, :, order])
    assert report.pairs == layout.pairs()
    assert report.density == layout.density()
    for head, matrix in enumerate(report.shot_matrix):
        edges = {(a, b) for a in range(len(order)) for b in range(len(order)) if a != b and matrix[a, b] > 0.05}
        assert report.loop_closures.mutual[head] == tuple(sorted((a, b) for a, b in edges if a < b and (b, a) in edges))


# Three shots of 40 tokens in chunks of 10; a shot is anchored to itself, so that routes lead to the other two.
STREAM = moc.Stream(tuple(moc.Segment("video", 40, shot=shot) for shot in (5, 2, 9)))
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=10), top_k=2, anchors=("shot",))


def planted(*edges: tuple[int, int, int], spec: moc.RoutingSpec = SPEC, heads: int = 1) -> moc.Layout:
    """Route the first `count` queries of shot a to a chunk of shot b, for each (a, b, count); nothing else."""
    plan = moc.plan(spec)
    selected = np.full((1, heads, plan.q_tokens, plan.slots), -1, np.int32)
    for a, b, count in edges:
        for row in selected[0, -1, 40 * a : 40 * a + count]:
            row[: (row >= 0).sum() + 1] = sorted([*row[row >= 0], 4 * b])
    layout = moc.Layout(selected, plan)
    layout.validate()
    return layout


def test_two_shots_that_feed_each_other_are_a_loop_closure() -> None:
    report = planted((1, 2, 3), (2, 1, 4), (0, 1, 40), (0, 2, 40)).report()
    assert report.shot_matrix[0].tolist() == [[0, 1, 1], [0, 0, 3 / 40], [0, 4 / 40, 0]]
    assert report.loop_closures.mutual == (((1, 2),),)
    assert report.loop_closures.components == (((1, 2),),)
    assert report.loop_closures


def test_a_cycle_of_three_is_a_component_without_mutual_pairs() -> None:
    report = planted((0, 1, 5), (1, 2, 5), (2, 0, 5)).report()
    assert report.loop_closures.mutual == ((),)
    assert report.loop_closures.components == (((0, 1, 2),),)
    assert report.loop_closures


def test_edges_in_one_direction_close_no_loop() -> None:
    report = planted((1, 0, 40), (2, 0, 40), (2, 1, 40)).report()
    assert report.loop_closures.mutual == report.loop_closures.components == ((),)
    assert not report.loop_closures


def test_an_edge_counts_above_the_threshold_only() -> None:
    layout = planted((1, 2, 2), (2, 1, 40))  # 2 of 40 queries are 0.05, the threshold itself
    assert not layout.report().loop_closures
    assert layout.report().threshold == 0.05
    assert layout.report(threshold=0.0499).loop_closures.mutual == (((1, 2),),)
    assert planted((1, 2, 3), (2, 1, 40)).report().loop_closures
    assert not planted((1, 2, 3), (2, 1, 40)).report(threshold=1).loop_closures
    assert planted((1, 2, 1), (2, 1, 1)).report(threshold=0).loop_closures
    assert not planted().report(threshold=0).loop_closures


def test_heads_are_counted_apart() -> None:
    report = planted((1, 2, 30), (2, 1, 30), heads=2).report()
    assert report.loop_closures.mutual == ((), ((1, 2),))
    assert report.loop_closures.components == ((), ((1, 2),))
    assert report.chunk_load.tolist() == [[0] * 12, [0, 0, 0, 0, 30, 0, 0, 0, 30, 0, 0, 0]]
    assert report.dead_chunks == (tuple(range(12)), (0, 1, 2, 3, 5, 6, 7, 9, 10, 11))


def test_two_routes_into_one_shot_are_one_hit() -> None:
    layout = planted((0, 1, 10))
    layout.selected[0, 0, :10, 1] = 5
    layout.validate()
    assert layout.report().shot_matrix[0, 0].tolist() == [0, 0.25, 0]


def test_causal_routing_leaves_no_loop_and_dead_chunks_only_where_no_one_looks() -> None:
    layout = layout_of(Problem(replace(SPEC, causal="chunk", top_k=8), (STREAM,), heads=2, head_dim=4))
    report = layout.report(threshold=0)
    assert not report.loop_closures
    assert report.dead_chunks == ((), ())  # the last shot's chunks are nobody's candidates
    assert report.chunk_load[0].tolist() == [80] * 4 + [40] * 4 + [0] * 4


def test_global_text_is_no_shot() -> None:
    stream = moc.Stream((moc.Segment("text", 10), *STREAM.segments))
    spec = replace(SPEC, stream=stream, dense_queries=(), routable=("text", "video"), top_k=20)
    report = layout_of(Problem(spec, (stream,), head_dim=4)).report()
    np.testing.assert_array_equal(report.shot_matrix[0], 1 - np.eye(3))
    assert report.chunk_load[0].tolist() == [120] + [90] * 12  # the text's routes count in the load, in no shot


def test_a_stream_of_text_alone_has_no_shots() -> None:
    stream = moc.Stream((moc.Segment("text", 10),))
    report = layout_of(Problem(replace(SPEC, stream=stream), (stream,), head_dim=4)).report()
    assert report.shot_matrix.shape == (1, 0, 0)
    assert report.dead_chunks == ((),)
    assert not report.loop_closures


def test_padded_queries_count_in_no_share() -> None:
    lengths = ((40, 20, 40),)
    spec = replace(SPEC, top_k=8)
    report = layout_of(Problem(spec, (STREAM,), head_dim=4, key_lengths=lengths)).report()
    np.testing.assert_array_equal(report.shot_matrix[0], 1 - np.eye(3))
    assert report.chunk_load[0].tolist() == [60] * 4 + [80, 80, 0, 0] + [60] * 4


def test_packed_samples_of_one_stream_are_summed_and_unlike_ones_refused() -> None:
    free = replace(SPEC, stream=None, top_k=8)
    report = layout_of(Problem(free, (STREAM, STREAM), head_dim=4, packed=True)).report()
    assert report.chunk_load[0].tolist() == [160] * 12
    np.testing.assert_array_equal(report.shot_matrix[0], 1 - np.eye(3))
    short = moc.Stream((moc.Segment("video", 8),))
    layout = layout_of(Problem(free, (STREAM, short), head_dim=4, packed=True))
    with pytest.raises(moc.LayoutError) as raised:
        layout.report()
    text = "report: the samples must share one stream, got unlike streams. Hint: report them one by one."
    assert str(raised.value) == text


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.1", None, True])
def test_a_threshold_is_a_share(value: Any) -> None:
    with pytest.raises(moc.SpecError) as raised:
        planted().report(threshold=value)
    assert str(raised.value).startswith(f"report: threshold must be a finite number >= 0 and <= 1, got {value!r} (")

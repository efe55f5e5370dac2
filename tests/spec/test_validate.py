"""`Layout.validate` finds one planted violation of every rule, and says where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing.problems import Problem

# Chunks of 4: text 0, 1; video of shot 0 in 2, 3, 4; text in 5; video of shot 1 in 6, 7, 8.
STREAM = moc.Stream(
    (
        moc.Segment("text", 8),
        moc.Segment("video", 12, shot=0),
        moc.Segment("text", 4, shot=1),
        moc.Segment("video", 12, shot=1),
    )
)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=4), top_k=3, anchors=("chunk",))
LENGTHS = np.array([[8, 12, 4, 12], [8, 10, 4, 12]], np.int32)
HINT = "Hint: make layouts with sparsemoc.route."


def layout_of(spec: moc.RoutingSpec, lengths: Any = None) -> moc.Layout:
    arrays = Problem(spec, (STREAM,), batch=2, heads=2, head_dim=4).arrays
    layout = moc.route(arrays.q, arrays.k, spec, key_lengths=lengths, backend="reference")
    layout.validate()
    return layout


def error_of(layout: moc.Layout, place: tuple[int, int, int], row: Sequence[int]) -> str:
    layout.selected[place] = row
    with pytest.raises(moc.LayoutError) as raised:
        layout.validate()
    return str(raised.value)


#: The place and its new row; the rule.
PLANTED: dict[str, tuple[tuple[int, int, int], list[int], str]] = {
    "beyond the chunks": ((1, 0, 9), [3, 4, 9], "must hold chunk numbers < 9"),
    "below -1": ((1, 1, 9), [3, -2, -1], "must hold chunk numbers, or -1 for none"),
    "descending": ((0, 1, 9), [4, 3, 6], "must be strictly ascending"),
    "twice": ((0, 0, 9), [3, 3, 6], "must be strictly ascending"),
    "a gap": ((0, 0, 9), [3, -1, 6], "must hold -1 only after its chunks"),
    "a gap in front": ((0, 0, 35), [-1, 3, 6], "must hold -1 only after its chunks"),
    "own chunk": ((0, 1, 9), [2, 3, 6], "must hold candidates of its query only"),
    "text": ((0, 1, 9), [5, 6, 7], "must hold candidates of its query only"),
    "a dense query": ((1, 1, 3), [3, -1, -1], "must hold candidates of its query only"),
    "a dense query amid routed ones": ((1, 1, 21), [3, -1, -1], "must hold candidates of its query only"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation(name: str) -> None:
    place, row, rule = PLANTED[name]
    text = f"Layout: selected[{place[0]}, {place[1]}, {place[2]}] {rule}, got {row}. 1 rows break this rule. {HINT}"
    assert error_of(layout_of(SPEC), place, row) == text


def test_candidates_that_neighbours_across_a_gap_share_are_none_of_the_gap() -> None:
    # Without anchors all routed queries have the same candidates; between them lie text and padding.
    spec = replace(SPEC, anchors=())
    rule = "must hold candidates of its query only, got [3, -1, -1]"
    assert rule in error_of(layout_of(spec), (0, 0, 21), [3, -1, -1])
    assert rule in error_of(layout_of(spec, LENGTHS), (1, 0, 19), [3, -1, -1])


def test_a_chunk_without_valid_keys_is_no_candidate() -> None:
    lengths = LENGTHS.copy()
    lengths[1, 1] = 8
    assert "must hold candidates" in error_of(layout_of(SPEC, lengths), (1, 0, 9), [4, 6, 7])


def test_causal_candidates_lie_before_the_own_chunk() -> None:
    spec = replace(SPEC, causal="chunk")
    assert "must hold candidates" in error_of(layout_of(spec), (0, 0, 13), [2, 4, -1])


def test_more_than_top_k_of_the_head() -> None:
    spec = replace(SPEC, top_k=(3, 1))
    text = error_of(layout_of(spec), (0, 1, 9), [3, 4, -1])
    assert "selected[0, 1, 9] must hold at most top_k (+ into_max) chunks, got [3, 4, -1]. 1 rows break" in text
    added = replace(spec, dropout=moc.RouteDropout(into=1.0, into_max=1))
    layout = layout_of(added)
    layout.selected[0, 1, 9] = [3, 4, -1, -1]
    layout.validate()
    assert "at most top_k (+ into_max)" in error_of(layout, (0, 1, 9), [3, 4, 6, -1])


def test_members_of_a_block_share_their_routes() -> None:
    layout = layout_of(replace(SPEC, unit=moc.Block(2)))
    row = [3, 4, 6] if layout.selected[0, 0, 9].tolist() != [3, 4, 6] else [3, 4, 7]
    text = error_of(layout, (0, 0, 9), row)
    assert f"selected[0, 0, 9] must be the same for all members of a block, got {row}" in text


def test_packed_samples_are_checked_by_their_own_chunks() -> None:
    short = moc.Stream((moc.Segment("video", 8),))
    spec = replace(SPEC, stream=None)
    arrays = Problem(spec, (short, STREAM), heads=1, head_dim=4, packed=True).arrays
    layout = moc.route(arrays.q, arrays.k, spec, stream=(short, STREAM), backend="reference")
    layout.validate()
    assert "selected[0, 0, 5] must hold chunk numbers < 2" in error_of(layout, (0, 0, 5), [0, 3, -1])


def test_checked_attend_validates() -> None:
    layout = layout_of(SPEC)
    arrays = Problem(SPEC, (STREAM,), batch=2, heads=2, head_dim=4).arrays
    layout.selected[0, 0, 9] = [2, 3, 6]
    with pytest.raises(moc.LayoutError, match="must hold candidates"):
        moc.attend(arrays.q, arrays.k, arrays.v, layout, options=moc.Options(checked=True), backend="reference")

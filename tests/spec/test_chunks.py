"""Chunks: where segments are cut, from hand-written cases and from the rules on drawn ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.stream import Segment, Stream


def lengths(chunks: Chunks, *segments: Segment) -> list[int]:
    return [after - before for before, after in pairwise(chunks.cuts(Stream(segments)))]


@pytest.mark.parametrize(
    ("tokens", "size", "tail", "expected"),
    [
        (10, 4, "balanced", [4, 3, 3]),
        (10, 4, "short", [4, 4, 2]),
        (9, 4, "balanced", [3, 3, 3]),
        (9, 4, "short", [4, 4, 1]),
        (8, 4, "balanced", [4, 4]),
        (8, 4, "short", [4, 4]),
        (3, 4, "balanced", [3]),
        (3, 4, "short", [3]),
        (3, 1, "balanced", [1, 1, 1]),
        (11, 5, "balanced", [4, 4, 3]),
        (7, None, "balanced", [7]),
        (7, 2**31 - 1, "short", [7]),
    ],
)
def test_a_segment_is_cut(tokens: int, size: int | None, tail: str, expected: list[int]) -> None:
    assert lengths(Chunks(size=size, tail=tail), Segment("audio", tokens)) == expected


@pytest.mark.parametrize(
    ("grid", "size", "tail", "expected"),
    [
        # frame = 6 tokens; a size of 13 holds two whole frames
        ((5, 2, 3), 13, "balanced", [12, 12, 6]),
        ((4, 2, 3), 13, "balanced", [12, 12]),
        ((7, 2, 3), 18, "balanced", [18, 12, 12]),
        ((7, 2, 3), 18, "short", [18, 18, 6]),
        ((3, 2, 3), 6, "balanced", [6, 6, 6]),
        # a frame is larger than the size: each is cut by itself
        ((2, 2, 3), 5, "balanced", [3, 3, 3, 3]),
        ((2, 2, 3), 5, "short", [5, 1, 5, 1]),
        ((2, 1, 7), 3, "balanced", [3, 2, 2, 3, 2, 2]),
        ((2, 2, 3), None, "balanced", [12]),
    ],
)
def test_frames_stay_whole_under_align(
    grid: tuple[int, int, int], size: int | None, tail: str, expected: list[int]
) -> None:
    assert lengths(Chunks(size=size, align="frame", tail=tail), Segment("video", grid=grid)) == expected


def test_segments_without_a_grid_ignore_align_and_chunks_never_cross_segments() -> None:
    segments = (Segment("text", 5), Segment("video", grid=(3, 1, 2)), Segment("audio", 4))
    assert lengths(Chunks(size=4, align="frame"), *segments) == [3, 2, 4, 2, 4]
    assert lengths(Chunks(size=4), *segments) == [3, 2, 3, 3, 4]


def test_given_bounds_are_the_cuts() -> None:
    stream = Stream((Segment("text", 3), Segment("video", 5)))
    chunks = Chunks(bounds=[0, np.int64(3), 4, 8])  # type: ignore[arg-type]
    assert chunks.cuts(stream) == (0, 3, 4, 8)
    assert chunks == Chunks(bounds=(0, 3, 4, 8))
    assert hash(chunks) == hash(Chunks(bounds=(0, 3, 4, 8)))


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        ((0, 4, 8), "every segment boundary of the stream, got (0, 4, 8) (tuple), where 3 is missing"),
        ((0, 3, 7), "must end with the stream's 8 tokens, got 7 as the last"),
        ((0, 3, 8, 9), "must end with the stream's 8 tokens, got 9 as the last"),
    ],
)
def test_bounds_that_do_not_fit_the_stream(bounds: tuple[int, ...], problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        Chunks(bounds=bounds).cuts(Stream((Segment("text", 3), Segment("video", 5))))
    assert problem in str(raised.value)


@given(st.integers(1, 400), st.integers(1, 450), st.sampled_from(["balanced", "short"]))
def test_parts_follow_the_rule(tokens: int, size: int, tail: str) -> None:
    parts = lengths(Chunks(size=size, tail=tail), Segment("audio", tokens))
    assert sum(parts) == tokens
    assert len(parts) == math.ceil(tokens / size)
    assert all(1 <= part <= size for part in parts)
    if tail == "short":
        assert all(part == size for part in parts[:-1])
    else:
        assert max(parts) - min(parts) <= 1
        assert parts == sorted(parts, reverse=True)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.sampled_from(["balanced", "short"]))
def test_aligned_parts_follow_the_rule(frames: int, frame: int, size: int, tail: str) -> None:
    parts = lengths(Chunks(size=size, align="frame", tail=tail), Segment("video", grid=(frames, 1, frame)))
    if frame > size:
        assert parts == lengths(Chunks(size=size, tail=tail), Segment("audio", frame)) * frames
        return
    whole = [part // frame for part in parts]
    assert [n * frame for n in whole] == parts
    assert len(whole) == math.ceil(frames / (size // frame))
    assert whole == lengths(Chunks(size=size // frame, tail=tail), Segment("audio", frames))

"""Streams and segments: what is stored, counted and named."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.stream import Segment, Stream


def test_a_grid_gives_the_tokens() -> None:
    segment = Segment("video", grid=(4, 3, 5), shot=2)
    assert (segment.tokens, segment.frame_tokens) == (60, 15)
    assert segment == Segment("video", 60, 2, (4, 3, 5))


def test_a_segment_without_a_grid_counts_as_one_frame() -> None:
    assert Segment("audio", 12).frame_tokens == 12


def test_lists_and_numpy_integers_give_equal_values_and_hashes() -> None:
    plain = Stream((Segment("text", 6, shot=0), Segment("video", shot=1, grid=(1, 2, 3))))
    other = Stream(
        [Segment("text", np.int64(6), np.uint8(0)), Segment("video", shot=np.array(1), grid=[np.int32(1), 2, 3])]  # type: ignore[arg-type]
    )
    assert plain == other
    assert hash(plain) == hash(other)
    assert isinstance(other.segments, tuple)
    assert other.segments[1].grid == (1, 2, 3)
    assert all(type(n) is int for n in (other.segments[0].tokens, other.segments[0].shot, *other.segments[1].grid))


def test_streams_are_frozen_and_survive_pickling_with_what_they_cached() -> None:
    stream = Stream.multishot(2, 1, 2, 2, caption=3)
    assert (stream.tokens, stream.bounds) == (14, (0, 3, 7, 10, 14))
    assert pickle.loads(pickle.dumps(stream)) == stream
    with pytest.raises(FrozenInstanceError):
        stream.segments = ()  # type: ignore[misc]


def test_shots_are_numbered_in_order_of_appearance() -> None:
    stream = Stream(
        (
            Segment("text", 1),  # global
            Segment("video", 1, shot=7),
            Segment("audio", 1),  # a shot by itself
            Segment("text", 1, shot=7),  # a caption, not contiguous with its shot
            Segment("audio", 1),  # another shot by itself
            Segment("text", 1, shot=0),
            Segment("video", 1, shot=7),
        )
    )
    assert stream.shots == (None, 0, 1, 0, 2, 3, 0)


def test_multishot_is_the_prompt_then_caption_and_video_of_each_shot() -> None:
    assert Stream.multishot(shots=2, frames=3, height=4, width=5, caption=6, prompt=7) == Stream(
        (
            Segment("text", 7),
            Segment("text", 6, shot=0),
            Segment("video", shot=0, grid=(3, 4, 5)),
            Segment("text", 6, shot=1),
            Segment("video", shot=1, grid=(3, 4, 5)),
        )
    )


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        ({}, "video video"),
        ({"prompt": 7}, "text video video"),
        ({"caption": 7}, "text video text video"),
        ({"prompt": 0, "caption": 0}, "video video"),
    ],
)
def test_multishot_leaves_out_texts_of_no_tokens(texts: dict[str, int], kinds: str) -> None:
    stream = Stream.multishot(2, 1, 1, 1, **texts)
    assert " ".join(segment.kind for segment in stream.segments) == kinds


def test_a_stream_is_addressed_with_int32() -> None:
    half = Segment("video", 2**30)
    assert Stream((half, Segment("video", 2**30 - 1))).tokens == 2**31 - 1
    with pytest.raises(SpecError, match=r"^Stream: the total of tokens must be .* <= 2147483647, got 2147483648"):
        Stream((half, half))

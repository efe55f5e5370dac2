"""The outer router: the choice by hand, the features it compares, and attention over what is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle
from sparsemoc.training import OuterRouter, select_shots, shot_features

HAS_TORCH = importlib.util.find_spec("torch") is not None


def as_array(library: str, array: Any) -> Any:
    if library == "numpy":
        return np.asarray(array)
    import torch

    return torch.from_numpy(np.asarray(array))


@pytest.fixture(
    params=["numpy", pytest.param("torch", marks=pytest.mark.skipif(not HAS_TORCH, reason="tensors are torch's"))]
)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Dot products with (1, 2): 5, 2, 5, -1, 4; the lengths are sqrt of 5, 4, 25, 1, 4.
FEATURES = np.array([[1, 2], [2, 0], [5, 0], [-1, 0], [0, 2]], np.float32)
QUERY = np.array([1, 2], np.float32)


@pytest.mark.parametrize(
    ("router", "shot", "wanted"),
    [
        (OuterRouter(1), None, [0]),  # a tie with shot 2: the lower
        (OuterRouter(2), None, [0, 2]),
        (OuterRouter(3), None, [0, 2, 4]),
        (OuterRouter(9), None, [0, 1, 2, 3, 4]),
        (OuterRouter(0), None, []),
        (OuterRouter(2, score="cosine"), None, [0, 4]),
        (OuterRouter(2), 2, [0, 1]),  # shots 2 and later are not past
        (OuterRouter(2), 0, []),
        (OuterRouter(1, always=("previous",)), None, [0, 4]),
        (OuterRouter(1, always=("previous",)), 4, [0, 3]),
        (OuterRouter(1, always=("first", "previous")), 4, [0, 2, 3]),
        (OuterRouter(1, always=("first", "previous", 0)), 1, [0]),
        (OuterRouter(0, always=(1, 3)), 3, [1]),
        (OuterRouter(0, always=("previous",)), 0, []),
    ],
)
def test_the_choice_by_hand(library: str, router: OuterRouter, shot: int | None, wanted: list[int]) -> None:
    chosen = router.choose(as_array(library, FEATURES), as_array(library, QUERY), shot=shot)
    assert chosen.tolist() == wanted
    assert str(chosen.dtype).endswith("int64")


def test_batches_choose_row_by_row(library: str) -> None:
    random = np.random.default_rng(0)
    features, query = random.standard_normal((6, 9, 4)), random.standard_normal((6, 4))
    router = OuterRouter(3, always=("first",))
    together = router.choose(as_array(library, features), as_array(library, query), shot=8)
    assert together.shape == (6, 4)
    for row in range(6):
        scores = (features[row] @ query[row])[1:8]
        best = 1 + np.argsort(-scores)[:3]
        assert together[row].tolist() == [0, *sorted(best.tolist())]


def test_a_nan_is_never_hidden_and_a_zero_scores_zero(library: str) -> None:
    features = as_array(library, np.array([[3, 0], [np.nan, 0], [0, 0], [-1, 0]], np.float16))
    query = as_array(library, np.array([1, 0], np.float16))
    assert OuterRouter(1).choose(features, query).tolist() == [1]
    assert OuterRouter(3, score="cosine").choose(features, query).tolist() == [0, 1, 2]


# Shot 0 has a caption and two videos, apart; shot 1 is the one without a number.
STREAM = moc.Stream(
    (
        moc.Segment("text", 3),
        moc.Segment("text", 2, shot=7),
        moc.Segment("video", 4, shot=7),
        moc.Segment("video", 5),
        moc.Segment("video", 3, shot=7),
        moc.Segment("text", 2, shot=2),
        moc.Segment("video", 6, shot=2),
    )
)


def test_features_are_means_over_a_shot(library: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, STREAM.tokens, 3)).astype(np.float32)
    places = [[3, 4, 5, 6, 7, 8, 14, 15, 16], [9, 10, 11, 12, 13], [17, 18, 19, 20, 21, 22, 23, 24]]
    found = shot_features(as_array(library, x), STREAM)
    assert str(found.dtype).endswith("float32")
    np.testing.assert_allclose(found, np.stack([x[:, p].mean(1) for p in places], 1), rtol=1e-5, atol=1e-6)
    videos = shot_features(as_array(library, x[0]), STREAM, kinds=("video",))
    places = [places[0][2:], places[1], places[2][2:]]
    np.testing.assert_allclose(videos, np.stack([x[0, p].mean(0) for p in places]), rtol=1e-5, atol=1e-6)


def test_padding_is_no_part_of_a_feature(library: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, STREAM.tokens, 3)).astype(np.float32)
    lengths = np.array([[3, 1, 4, 2, 0, 2, 6], [3, 2, 9, 0, 3, 0, -1]], np.int32)
    valid = [[[3, 5, 6, 7, 8], [9, 10], [*range(17, 25)]], [[*range(3, 9), 14, 15, 16], [], []]]
    wanted = [[x[b, p].mean(0) if p else np.zeros(3) for p in valid[b]] for b in range(2)]
    for b in range(2):
        padded = np.setdiff1d(np.arange(STREAM.tokens), [0, 1, 2, *chain(*valid[b])])
        x[b, padded] = np.nan
    found = shot_features(as_array(library, x), STREAM, key_lengths=as_array(library, lengths))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_stream_of_global_text_has_no_features(library: str) -> None:
    stream = moc.Stream((moc.Segment("text", 4),))
    assert shot_features(as_array(library, np.zeros((2, 4, 3), np.float32)), stream).shape == (2, 0, 3)


def test_select_shots_keeps_segments_numbers_and_global_text(library: str) -> None:
    kept = select_shots(STREAM, as_array(library, np.array([2, 0])))
    assert kept.stream == moc.Stream((*STREAM.segments[:3], *STREAM.segments[4:]))
    assert kept.tokens.tolist() == [*range(9), *range(14, 25)]
    assert select_shots(STREAM, [1, 1]).tokens.tolist() == [0, 1, 2, *range(9, 14)]
    assert select_shots(STREAM, []).stream.segments == STREAM.segments[:1]
    x = np.random.default_rng(0).standard_normal((2, STREAM.tokens, 3))
    np.testing.assert_array_equal(kept.gather(as_array(library, x)), x[:, kept.tokens])
    np.testing.assert_array_equal(kept.gather(as_array(library, x[0]), axis=0), x[0, kept.tokens])


@pytest.mark.parametrize("causal", ["none", "chunk"])
def test_attention_over_what_is_kept_is_attention_with_the_other_shots_masked(library: str, causal: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(2), top_k=2, anchors=("text", "shot"), causal=causal)
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, STREAM.tokens, 2, 8)) for _ in range(3))
    kept = select_shots(STREAM, (0, 2))
    lengths = [[0 if shot == 1 else s.tokens for s, shot in zip(STREAM.segments, STREAM.shots, strict=True)]]
    masked = oracle.run(q, k, v, spec, stream=STREAM, key_lengths=np.array(lengths, np.int32))
    part_q, part_k, part_v = (kept.gather(as_array(library, x)) for x in (q, k, v))
    out, lse = moc.attention(part_q, part_k, part_v, spec, stream=kept.stream, return_lse=True)
    np.testing.assert_allclose(out, masked.out[:, kept.tokens], atol=1e-10)
    np.testing.assert_allclose(lse, masked.lse[:, :, kept.tokens], atol=1e-10)
    full = oracle.run(q, k, v, spec, stream=STREAM)
    assert np.abs(full.out[:, kept.tokens] - np.asarray(out)).max() > 1e-3  # the masked shot did matter


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: OuterRouter(-1),
        moc.SpecError,
        "OuterRouter: top_m must be a whole number >= 0, got -1 (int).",
    ),
    (
        lambda: OuterRouter(1, always="first"),  # type: ignore[arg-type]
        moc.SpecError,
        "OuterRouter: always must be a tuple, got 'first' (str). Hint: always=(\"previous\",), or () for none.",
    ),
    (
        lambda: OuterRouter(1, always=("frist",)),
        moc.SpecError,
        'OuterRouter: always must hold "first", "previous" or shot numbers, got \'frist\' (str). Did you mean "first"?',
    ),
    (
        lambda: OuterRouter(1, score="cos"),
        moc.SpecError,
        'OuterRouter: score must be "dot" or "cosine", got \'cos\' (str). Did you mean "cosine"?',
    ),
    (
        lambda: OuterRouter(1).choose(FEATURES, QUERY, shot=6),
        moc.SpecError,
        "OuterRouter.choose: shot must be a whole number >= 0 and <= 5, got 6 (int).",
    ),
    (
        lambda: OuterRouter(1).choose(FEATURES[0], QUERY),
        moc.ShapeError,
        "OuterRouter.choose: features must have shape (batch, shots, dim) or (shots, dim), got (2,).",
    ),
    (
        lambda: OuterRouter(1).choose(FEATURES, FEATURES),
        moc.ShapeError,
        "OuterRouter.choose: query must have shape (2,), that of features without shots, got (5, 2). "
        "Hint: mean over the tokens of the new shot.",
    ),
    (
        lambda: shot_features(FEATURES, STREAM),
        moc.ShapeError,
        "shot_features: x must have shape (batch, tokens, dim) or (tokens, dim) with the stream's 25 tokens, "
        "got (5, 2).",
    ),
    (
        lambda: shot_features(np.zeros((25, 2)), STREAM, key_lengths=np.zeros((1, 7), np.int32)),
        moc.ShapeError,
        "shot_features: key_lengths must be of the library of x and have shape (7,), one number for each segment, "
        "got ndarray (1, 7).",
    ),
    (
        lambda: shot_features(np.zeros((25, 2)), STREAM, kinds=("text",)),
        moc.SpecError,
        "shot_features: each shot must have a segment of kinds ('text',), got none in shot 1. "
        "Hint: kinds=None counts all of them.",
    ),
    (
        lambda: select_shots("stream", [0]),  # type: ignore[arg-type]
        moc.SpecError,
        "select_shots: stream must be a Stream, got 'stream' (str). Hint: Stream.multishot(...).",
    ),
    (
        lambda: select_shots(STREAM, [3]),
        moc.SpecError,
        "select_shots: shots must be a whole number >= 0 and <= 2, got 3 (int).",
    ),
    (
        lambda: select_shots(STREAM, np.array([[0, 1]])),
        moc.ShapeError,
        "select_shots: shots must be whole numbers in one row, got int64 of shape (1, 2). "
        "Hint: one row of a batch at a time; each has a stream of its own.",
    ),
    (
        lambda: select_shots(moc.Stream((moc.Segment("video", 3),)), []),
        moc.SpecError,
        "select_shots: shots must leave something of a stream without global text, got none. "
        "Hint: keep the shot that is to be generated.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == text


@pytest.mark.skipif(not HAS_TORCH, reason="tensors are torch's")
def test_two_libraries_are_not_mixed() -> None:
    with pytest.raises(moc.ShapeError) as raised:
        OuterRouter(1).choose(FEATURES, as_array("torch", QUERY))
    assert str(raised.value) == (
        "OuterRouter.choose: features and query must be of one library, got ndarray and Tensor."
    )


def test_a_router_is_a_value() -> None:
    assert replace(OuterRouter(2), always=["first"]) == OuterRouter(2, ("first",))  # type: ignore[arg-type]
    assert hash(OuterRouter(2, ("first", 3))) == hash(OuterRouter(2, ("first", 3)))

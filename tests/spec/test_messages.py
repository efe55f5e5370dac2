"""The texts of the value classes' errors: each names the argument, the rule, the value, and a way out."""

# mypy: disable-error-code="arg-type"
# Values of the wrong kind are what this file is about.

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsemoc.spec import errors
from sparsemoc.spec.anchors import first, window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

HUGE = 10**5000  # more digits than Python prints


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(errors.SpecError) as raised:
        call()
    return str(raised.value)


# Each whole-number argument: how to give it, how the message names it, its least and most.
COUNTS: dict[str, tuple[Callable[[Any], object], int, int | None]] = {
    'Segment("text"): tokens': (lambda n: Segment("text", n), 1, 2**31 - 1),
    'Segment("text"): shot': (lambda n: Segment("text", 1, shot=n), 0, 2**31 - 1),
    'Segment("video"): grid': (lambda n: Segment("video", grid=(1, n, 1)), 1, 2**31 - 1),
    "Stream.multishot: shots": (lambda n: Stream.multishot(n, 1, 1, 1), 1, None),
    "Stream.multishot: frames": (lambda n: Stream.multishot(1, n, 1, 1), 1, 2**31 - 1),
    "Stream.multishot: height": (lambda n: Stream.multishot(1, 1, n, 1), 1, 2**31 - 1),
    "Stream.multishot: width": (lambda n: Stream.multishot(1, 1, 1, n), 1, 2**31 - 1),
    "Stream.multishot: caption": (lambda n: Stream.multishot(1, 1, 1, 1, caption=n), 0, 2**31 - 2),
    "Stream.multishot: prompt": (lambda n: Stream.multishot(1, 1, 1, 1, prompt=n), 0, 2**31 - 2),
    "Chunks: size": (lambda n: Chunks(size=n), 1, 2**31 - 1),
    "Chunks: bounds": (lambda n: Chunks(bounds=(0, n)), 0, 2**31 - 1),
    "RoutingSpec: top_k": (lambda n: RoutingSpec(top_k=n), 0, 2**16 - 1),
    "RoutingSpec: top_k ": (lambda n: RoutingSpec(top_k=(1, n)), 0, 2**16 - 1),
    "Block: n": (Block, 1, 2**31 - 1),
    "RouteDropout: into_max": (lambda n: RouteDropout(into_max=n), 0, 2**16 - 1),
    "first: n": (first, 0, 2**31 - 1),
    "window: n": (window, 0, 2**31 - 1),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.0, "3", True, np.True_, {}, np.array([3]), np.float32(2)])
def test_a_count_of_another_kind(name: str, value: object) -> None:
    give, least, _ = COUNTS[name]
    start = f"{name.strip()} must be a whole number >= {least}, got {value!r} ({type(value).__name__})."
    assert error_of(lambda: give(value)).startswith(start)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_out_of_range(name: str) -> None:
    give, least, most = COUNTS[name]
    below = error_of(lambda: give(least - 1))
    assert below.startswith(f"{name.strip()} must be a whole number >= {least}, got {least - 1} (int).")
    assert "must be a whole number" in error_of(lambda: give(-HUGE))
    above = error_of(lambda: give(HUGE))
    assert re.search(r"must be a whole number >= \d and <= \d+, got a value too long to print \(int\)\.", above)
    if most is not None:
        if name != "Chunks: bounds":  # 0 is a fine cut, yet not after 0
            give(max(least, 1))
        give(most)
        assert f"<= {2**16 - 1 if most < 2**16 else 2**31 - 1}, got " in error_of(lambda: give(most + 2))


# Each argument that is one of a few words.
WORDS: dict[str, tuple[Callable[[Any], object], str]] = {
    "Chunks: align": (lambda w: Chunks(align=w), '"frame"'),
    "Chunks: tail": (lambda w: Chunks(tail=w), '"balanced" or "short"'),
    "RoutingSpec: causal": (lambda w: RoutingSpec(causal=w), '"none", "chunk" or "token"'),
    "RoutingSpec: dense_scope": (lambda w: RoutingSpec(dense_scope=w), '"all" or "past"'),
    "first: unit": (lambda w: first(1, w), '"token" or "frame"'),
    "first: of": (lambda w: first(1, of=w), '"stream" or "shot"'),
    "window: unit": (lambda w: window(1, w), '"token", "frame" or "chunk"'),
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ["", "zzz", 3, ("frame",), b"frame"])
def test_a_word_that_is_not_allowed(name: str, value: object) -> None:
    give, allowed = WORDS[name]
    assert error_of(lambda: give(value)) == f"{name} must be {allowed}, got {value!r} ({type(value).__name__})."


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: Chunks(align="frames"), "frame"),
        (lambda: Chunks(tail="Short"), "short"),
        (lambda: RoutingSpec(causal="tokens"), "token"),
        (lambda: RoutingSpec(dense_scope="passt"), "past"),
        (lambda: RoutingSpec(anchors=("txt",)), "text"),
        (lambda: RoutingSpec(anchors=("segmnet",)), "segment"),
        (lambda: RoutingSpec(unit="tokn"), "token"),
        (lambda: first(1, "tokens"), "token"),
        (lambda: window(1, "chunks"), "chunk"),
    ],
)
def test_a_near_miss_says_what_was_meant(call: Callable[[], object], near: str) -> None:
    assert error_of(call).endswith(f' Did you mean "{near}"?')


@pytest.mark.parametrize(
    ("give", "name", "rule"),
    [
        (lambda x: RouteDropout(off=x), "RouteDropout: off", "must be a finite number >= 0 and <= 1"),
        (lambda x: RouteDropout(into=x), "RouteDropout: into", "must be a finite number >= 0"),
    ],
)
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), True, "0.5", None, 1j, -1])
def test_a_number_out_of_range(give: Callable[[object], object], name: str, rule: str, value: object) -> None:
    assert error_of(lambda: give(value)) == f"{name} {rule}, got {value!r} ({type(value).__name__})."
    assert "a value too long to print" in error_of(lambda: give(HUGE))


STREAM_HINT = 'Hint: Stream((Segment("video", 1024),)).'

EXACT: list[tuple[Callable[[], object], str]] = [
    (lambda: Segment(""), 'Segment: kind must be a non-empty word such as "video" or "text", got \'\' (str).'),
    (lambda: Segment(3), 'Segment: kind must be a non-empty word such as "video" or "text", got 3 (int).'),
    (
        lambda: Segment("video"),
        'Segment("video"): tokens or grid must be given. Hint: tokens=1024, or grid=(16, 30, 47).',
    ),
    (lambda: Segment("text"), 'Segment("text"): tokens must be given. Hint: tokens=77.'),
    (
        lambda: Segment("text", 0),
        'Segment("text"): tokens must be a whole number >= 1, got 0 (int). Leave an empty segment out.',
    ),
    (
        lambda: Segment("video", 7, grid=(1, 2, 3)),
        'Segment("video"): tokens must equal frames * height * width = 6 of grid (1, 2, 3), got 7. '
        "Hint: leave tokens out.",
    ),
    (
        lambda: Segment("text", 6, grid=(1, 2, 3)),
        'Segment("text"): grid must be None for text, got (1, 2, 3) (tuple). Text has no frames.',
    ),
    (
        lambda: Segment("video", grid=(2, 3)),
        'Segment("video"): grid must be (frames, height, width), got (2, 3) (tuple).',
    ),
    (
        lambda: Segment("video", grid=b"abc"),
        "Segment(\"video\"): grid must be (frames, height, width), got b'abc' (bytes).",
    ),
    (lambda: Stream(()), f"Stream: segments must be a non-empty tuple of Segment, got () (tuple). {STREAM_HINT}"),
    (lambda: Stream("text"), f"Stream: segments must be a non-empty tuple of Segment, got 'text' (str). {STREAM_HINT}"),
    (
        lambda: Stream(("text",)),
        "Stream: segments must hold Segment values, got 'text' (str). "
        'Hint: Segment("text", 77) or Segment("video", grid=(16, 30, 47)).',
    ),
    (lambda: Chunks(bounds=5), "Chunks: bounds must be a tuple of cuts (0, ..., tokens), got 5 (int)."),
    (
        lambda: Chunks(bounds=(0,)),
        "Chunks: bounds must start with 0 and hold at least one more cut, got (0,) (tuple).",
    ),
    (
        lambda: Chunks(bounds=[1, 2]),
        "Chunks: bounds must start with 0 and hold at least one more cut, got (1, 2) (tuple).",
    ),
    (lambda: Chunks(bounds=(0, 5, 5)), "Chunks: bounds must be strictly ascending, got 5 before 5."),
    (
        lambda: Chunks(size=4, bounds=(0, 5)),
        "Chunks: bounds must stand alone, got size=4 (int), align=None, tail='balanced' beside it. "
        "Hint: leave these out; they do not apply to given cuts.",
    ),
    (
        lambda: RoutingSpec(stream=(3,)),
        f"RoutingSpec: stream must be a Stream or None, got (3,) (tuple). {STREAM_HINT}",
    ),
    (
        lambda: RoutingSpec(chunks=256),
        "RoutingSpec: chunks must be a Chunks value, got 256 (int). Hint: Chunks(size=256).",
    ),
    (
        lambda: RoutingSpec(top_k=()),
        "RoutingSpec: top_k must hold at least one number, got () (tuple). "
        "Use one number, or a tuple with one per query head.",
    ),
    (
        lambda: RoutingSpec(top_k=(1, 2)).top_k_of(3),
        "RoutingSpec: top_k must hold one number per query head, 3, got 2 numbers. "
        "Hint: give one number for all heads.",
    ),
    (
        lambda: RoutingSpec(anchors="text"),
        "RoutingSpec: anchors must be a tuple, got 'text' (str). "
        'Hint: anchors=("text", "chunk"), or () for none.',
    ),
    (
        lambda: RoutingSpec(anchors=("window",)),
        'RoutingSpec: anchors must hold "text", "caption", "shot", "segment", "frame", "chunk", first(...) or '
        "window(...), got 'window' (str). Hint: window(4), the function, not the word.",
    ),
    (
        lambda: RoutingSpec(routable="video"),
        "RoutingSpec: routable must be a tuple of words, got 'video' (str). Hint: routable=(\"video\",).",
    ),
    (
        lambda: RoutingSpec(routable=("", "a")),
        "RoutingSpec: routable must hold non-empty words, got '' (str). Hint: routable=(\"video\",).",
    ),
    (
        lambda: RoutingSpec(dense_queries=None),
        "RoutingSpec: dense_queries must be a tuple of words, got None (NoneType). "
        'Hint: dense_queries=("text",), or () for none.',
    ),
    (
        lambda: RoutingSpec(unit=16),
        'RoutingSpec: unit must be "token" or Block(n), got 16 (int). Hint: unit=Block(16).',
    ),
    (
        lambda: RoutingSpec(dropout=0.5),
        "RoutingSpec: dropout must be a RouteDropout or None, got 0.5 (float). "
        "Hint: RouteDropout(off=0.5, into=1.0).",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), EXACT, ids=[text[:60] for _, text in EXACT])
def test_exact_texts(call: Callable[[], object], text: str) -> None:
    assert error_of(call) == text


def test_a_long_value_is_cut() -> None:
    text = error_of(lambda: RoutingSpec(anchors=("x" * 1000,)))
    assert "got '" + "x" * 76 + "... (str)." in text


@pytest.mark.parametrize("value", [np.arange(3), {"text"}, iter(("text",)), b"text", 3, None])
def test_anchors_of_another_kind_never_raise_anything_else(value: object) -> None:
    assert error_of(lambda: RoutingSpec(anchors=value)).startswith("RoutingSpec: anchors must be a tuple, got ")
    assert "RoutingSpec: anchors must hold" in error_of(lambda: RoutingSpec(anchors=(value,)))
    assert error_of(lambda: RoutingSpec(unit=value)).startswith('RoutingSpec: unit must be "token" or Block(n), got ')


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (errors.SpecError, ValueError),
        (errors.ShapeError, ValueError),
        (errors.LayoutError, ValueError),
        (errors.UnsupportedError, NotImplementedError),
    ],
)
def test_every_error_is_a_sparsemoc_error_and_a_builtin_one(special: type, general: type) -> None:
    assert issubclass(special, errors.SparsemocError)
    assert issubclass(special, general)

"""RoutingSpec and its small values: defaults, equality, what is accepted."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from sparsemoc.spec.anchors import First, Window, first, window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream


def test_the_defaults_are_the_papers_single_shot_setting() -> None:
    spec = RoutingSpec()
    assert {field.name: getattr(spec, field.name) for field in fields(spec)} == {
        "stream": None,
        "chunks": Chunks(size=256, align=None, tail="balanced", bounds=None),
        "top_k": 3,
        "anchors": ("text", "chunk"),
        "causal": "none",
        "routable": None,
        "dense_queries": ("text",),
        "dense_scope": "all",
        "unit": "token",
        "dropout": None,
    }
    assert RouteDropout() == RouteDropout(off=0.0, into=0.0, into_max=4)


def test_lists_and_numpy_numbers_give_equal_specs_and_hashes() -> None:
    plain = RoutingSpec(
        top_k=(1, 2), anchors=("text", First(3)), routable=("a",), dense_queries=(), unit=Block(4),
        dropout=RouteDropout(0.5, 2.0, 3),
    )  # fmt: skip
    other = RoutingSpec(
        top_k=[np.int64(1), np.array(2)],  # type: ignore[arg-type]
        anchors=["text", first(np.int32(3))],  # type: ignore[arg-type]
        routable=["a"],  # type: ignore[arg-type]
        dense_queries=[],  # type: ignore[arg-type]
        unit=Block(np.uint8(4)),  # type: ignore[arg-type]
        dropout=RouteDropout(np.float32(0.5), np.int64(2), np.int16(3)),  # type: ignore[arg-type]
    )
    assert plain == other
    assert hash(plain) == hash(other)
    assert isinstance(other.dropout, RouteDropout)
    assert (type(other.dropout.off), type(other.dropout.into)) == (float, float)


def test_specs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RoutingSpec().top_k = 4  # type: ignore[misc]


def test_first_and_window_make_the_anchor_values() -> None:
    assert first(3) == First(n=3, unit="token", of="stream")
    assert first(2, "frame", of="shot") == First(2, "frame", "shot")
    assert window(1) == Window(n=1, unit="token")
    assert window(0, unit="chunk") == Window(0, "chunk")


def test_top_k_per_head() -> None:
    assert RoutingSpec(top_k=2).top_k_of(3) == (2, 2, 2)
    assert RoutingSpec(top_k=(0, 4, 1)).top_k_of(3) == (0, 4, 1)
    assert RoutingSpec(top_k=(0, 4, 1)).max_top_k == 4
    assert RoutingSpec(top_k=0).max_top_k == 0


def test_given_bounds_must_fit_the_stream_of_the_spec() -> None:
    stream = Stream((Segment("text", 3), Segment("video", 5)))
    assert RoutingSpec(stream=stream, chunks=Chunks(bounds=(0, 3, 8))).stream == stream
    with pytest.raises(SpecError, match="3 is missing"):
        RoutingSpec(stream=stream, chunks=Chunks(bounds=(0, 8)))
    free = RoutingSpec(chunks=Chunks(bounds=(0, 8)))
    with pytest.raises(SpecError, match="3 is missing"):
        replace(free, stream=stream)


def test_a_spec_of_a_long_stream_cuts_nothing_when_it_is_made() -> None:
    before = time.perf_counter()
    RoutingSpec(stream=Stream((Segment("video", 2**31 - 1),)), chunks=Chunks(size=1))
    assert time.perf_counter() - before < 1

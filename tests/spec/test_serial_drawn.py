"""Drawn specs round-trip exactly in both forms; drawn text ends in a spec or a SpecError, whatever it holds."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemoc.spec.anchors import First, Window, first, window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.serial import load_spec
from sparsemoc.spec.stream import Segment, Stream

COUNT = st.integers(0, 2**31 - 1)
KIND = st.sampled_from(["video", "text", "audio"]) | st.text(min_size=1, max_size=6)
SHOT = st.none() | COUNT
SIDE = st.integers(1, 40)
SEGMENT = st.builds(Segment, KIND, st.integers(1, 10**6), SHOT) | st.builds(
    Segment, KIND.filter(lambda kind: kind != "text"), st.none(), SHOT, st.tuples(SIDE, SIDE, SIDE)
)
STREAM = st.builds(Stream, st.lists(SEGMENT, min_size=1, max_size=4))
ANCHOR = (
    st.sampled_from(["text", "caption", "shot", "segment", "frame", "chunk"])
    | st.builds(First, COUNT, st.sampled_from(["token", "frame"]), st.sampled_from(["stream", "shot"]))
    | st.builds(Window, COUNT, st.sampled_from(["token", "frame", "chunk"]))
)
RULED = st.builds(
    Chunks,
    st.none() | st.integers(1, 2**31 - 1),
    st.sampled_from([None, "frame"]),
    st.sampled_from(["balanced", "short"]),
)


@st.composite
def specs(draw: st.DrawFn) -> RoutingSpec:
    stream = draw(st.none() | STREAM)
    chunks = draw(RULED)
    if draw(st.booleans()):
        held = set(stream.bounds) if stream is not None else {0, 1000}
        more = draw(st.sets(st.integers(1, max(held)), max_size=3))
        chunks = Chunks(bounds=tuple(sorted(held | more)))
    top_k = st.integers(0, 2**16 - 1)
    return RoutingSpec(
        stream=stream,
        chunks=chunks,
        top_k=draw(top_k | st.lists(top_k, min_size=1, max_size=3).map(tuple)),
        anchors=tuple(draw(st.lists(ANCHOR, max_size=4))),
        causal=draw(st.sampled_from(["none", "chunk", "token"])),
        routable=draw(st.none() | st.lists(KIND, max_size=3).map(tuple)),
        dense_queries=tuple(draw(st.lists(KIND, max_size=3))),
        dense_scope=draw(st.sampled_from(["all", "past"])),
        unit=draw(st.just("token") | st.builds(Block, st.integers(1, 2**31 - 1))),
        dropout=draw(
            st.none() | st.builds(RouteDropout, st.floats(0, 1), st.floats(0, 1e300), st.integers(0, 2**16 - 1))
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@given(specs())
def test_json_round_trips_exactly(spec: RoutingSpec) -> None:
    text = spec.to_json()
    back = RoutingSpec.from_json(text)
    assert back == spec
    assert hash(back) == hash(spec)
    assert back.to_json() == text
    assert RoutingSpec.from_json(text.encode()) == spec


@given(STREAM)
def test_a_stream_round_trips_by_itself(stream: Stream) -> None:
    back = Stream.from_json(stream.to_json())
    assert back == stream
    assert hash(back) == hash(stream)


def test_a_kind_that_utf8_cannot_hold_round_trips_too() -> None:
    stream = Stream((Segment("\ud800\x00", 1),))
    assert Stream.from_json(stream.to_json().encode()) == stream


@given(spec=specs())
def test_toml_round_trips_exactly(spec: RoutingSpec, folder: Path) -> None:
    (folder / "spec.toml").write_text(toml_of(spec), encoding="utf-8", newline="")
    assert load_spec(folder / "spec.toml") == spec


def toml_of(spec: RoutingSpec) -> str:
    """Write the tables of the JSON as TOML; the rule of the form: what is null is left out."""
    table = json.loads(spec.to_json())
    return "\n".join(f"{key} = {toml_value(value)}" for key, value in table.items() if value is not None)


def toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


# Fuzz: each text ends in a spec or in a SpecError; anything else fails the test.

FULL = RoutingSpec(
    stream=Stream((Segment("text", 5, shot=1), Segment("video", grid=(2, 3, 4)), Segment("audio", 7))),
    chunks=Chunks(size=None, align="frame", tail="short"),
    top_k=(1, 0),
    anchors=("text", first(3, "frame", of="shot"), window(2, "chunk")),
    routable=("audio",),
    unit=Block(8),
    dropout=RouteDropout(0.25, 1.5, 2),
)
WORD = st.sampled_from(sorted(set(re.findall(r"\w+", FULL.to_json())) | {"zzz", "nan"}))
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORD
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=4), max_leaves=12
)


def ends_well(text: str | bytes, folder: Path) -> None:
    for form in (RoutingSpec, Stream):
        with contextlib.suppress(SpecError):
            found = form.from_json(text)
            assert form.from_json(found.to_json()) == found
    for name in ("fuzz.json", "fuzz.toml"):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(SpecError):
            assert isinstance(load_spec(folder / name), RoutingSpec)


@given(text=st.text(max_size=80) | st.binary(max_size=80))
def test_random_text_ends_well(text: str | bytes, folder: Path) -> None:
    ends_well(text, folder)


@given(value=VALUE)
def test_random_values_end_well(value: object, folder: Path) -> None:
    ends_well(json.dumps(value), folder)


@given(name=st.sampled_from([field.name for field in fields(RoutingSpec)]), value=VALUE)
def test_a_field_of_any_value_ends_well(name: str, value: object, folder: Path) -> None:
    ends_well(json.dumps(json.loads(FULL.to_json()) | {name: value}), folder)


@given(
    text=st.sampled_from([FULL.to_json(), toml_of(FULL)]),
    at=st.integers(0, 900),
    cut=st.integers(0, 12),
    put=st.text(max_size=4) | st.sampled_from(['"', "{", "]", "1e999", "NaN", "nan", "-1", "null", "\x00", "true"]),
)
def test_mutated_text_ends_well(text: str, at: int, cut: int, put: str, folder: Path) -> None:
    ends_well(text[:at] + put + text[at + cut :], folder)

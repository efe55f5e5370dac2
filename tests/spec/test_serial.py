"""Specs as text: the written form, files of both forms, and what is refused, with its reason."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sparsemoc.spec.anchors import first, window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.serial import load_spec
from sparsemoc.spec.stream import Segment, Stream

FULL = RoutingSpec(
    stream=Stream((Segment("text", 5, shot=1), Segment("video", grid=(2, 3, 4)), Segment("audio", 7))),
    chunks=Chunks(size=None, align="frame", tail="short"),
    top_k=(1, 0),
    anchors=("text", first(3, "frame", of="shot"), window(2, "chunk")),
    causal="chunk",
    routable=("audio",),
    dense_queries=(),
    dense_scope="past",
    unit=Block(8),
    dropout=RouteDropout(0.25, 1.5, 2),
)

FULL_JSON = """
{"version": 1,
 "stream": {"segments": [{"kind": "text", "tokens": 5, "shot": 1, "grid": null},
                         {"kind": "video", "tokens": 24, "shot": null, "grid": [2, 3, 4]},
                         {"kind": "audio", "tokens": 7, "shot": null, "grid": null}]},
 "chunks": {"size": "segment", "align": "frame", "tail": "short", "bounds": null},
 "top_k": [1, 0],
 "anchors": ["text", {"first": {"n": 3, "unit": "frame", "of": "shot"}}, {"window": {"n": 2, "unit": "chunk"}}],
 "causal": "chunk",
 "routable": ["audio"],
 "dense_queries": [],
 "dense_scope": "past",
 "unit": {"block": 8},
 "dropout": {"off": 0.25, "into": 1.5, "into_max": 2}}
"""

FULL_TOML = """
version = 1
top_k = [1, 0]
anchors = ["text", { first = { n = 3, unit = "frame", of = "shot" } }, { window = { n = 2, unit = "chunk" } }]
causal = "chunk"
routable = ["audio"]
dense_queries = []
dense_scope = "past"
unit = { block = 8 }
dropout = { off = 0.25, into = 1.5, into_max = 2 }

[chunks]
size = "segment"
align = "frame"
tail = "short"

[[stream.segments]]
kind = "text"
tokens = 5
shot = 1

[[stream.segments]]
kind = "video"
grid = [2, 3, 4]

[[stream.segments]]
kind = "audio"
tokens = 7
"""


def written(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_written_form() -> None:
    assert json.loads(FULL.to_json()) == json.loads(FULL_JSON)
    assert RoutingSpec.from_json(FULL_JSON) == FULL


def test_every_field_is_written_defaults_too() -> None:
    table = json.loads(RoutingSpec(stream=Stream((Segment("video", 1),)), dropout=RouteDropout()).to_json())
    assert list(table) == ["version", *(field.name for field in fields(RoutingSpec))]
    assert list(table["chunks"]) == [field.name for field in fields(Chunks)]
    assert list(table["dropout"]) == [field.name for field in fields(RouteDropout)]
    assert list(table["stream"]["segments"][0]) == [field.name for field in fields(Segment)]
    assert table["version"] == 1


def test_files_of_both_forms_load_the_same_spec(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path, "a.toml", FULL_TOML)) == FULL
    assert load_spec(written(tmp_path, "a.json", FULL_JSON)) == FULL
    assert load_spec(str(written(tmp_path, "A.JSON", FULL.to_json()))) == FULL


def test_what_is_left_out_takes_its_default(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path, "empty.toml", "")) == RoutingSpec()
    assert RoutingSpec.from_json("{}") == RoutingSpec()
    assert RoutingSpec.from_json('{"chunks": {"size": null}, "dropout": null}') == RoutingSpec(chunks=Chunks(size=None))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the text must be JSON in UTF-8: Expecting value"),
        ("[]", "the text must be a table of keys and values, got [] (list)."),
        ("null", "the text must be a table of keys and values, got None (NoneType)."),
        (b'{"top_k": 3, "\xff": 1}', "the text must be JSON in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        ('{"top_k": NaN}', "a number must be finite, got NaN."),
        ('{"dropout": {"into": -Infinity}}', "a number must be finite, got -Infinity."),
        ('{"dropout": {"into": 1e999}}', "dropout: RouteDropout: into must be a finite number >= 0, got inf (float)."),
        ('{"top_k": ' + "9" * 5000 + "}", "Exceeds the limit (4300 digits)"),
        ('{"top_k": 1, "top_k": 1}', "key 'top_k' (str) must appear once in its table, got it twice."),
        ("[" * 10**5, "the text must be nested a few levels at most, got too many."),
        ('{"version": 2}', "version must be 1, got 2 (int)."),
        ('{"version": true}', "version must be 1, got True (bool)."),
        ('{"version": 1.0}', "version must be 1, got 1.0 (float)."),
        ('{"version": null}', "version must be 1, got None (NoneType)."),
        ('{"topk": 3}', "unknown key 'topk'. Did you mean \"top_k\"?"),
        ('{"anchors": ["text", {"window": {"untis": 1}}]}', "key 'anchors[1].window.untis'. Did you mean \"unit"),
        ('{"anchors": [{"frist": {"n": 1}}]}', "unknown key 'anchors[0].frist'. Did you mean \"first\"?"),
        ('{"anchors": [{"first": {}}]}', "key 'anchors[0].first.n' must be given, got {} (dict)."),
        ('{"anchors": [{}]}', 'anchors[0] must have one key, "first" or "window", got [] (list).'),
        ('{"anchors": [{"first": 3}]}', "anchors[0].first must be a table of keys and values, got 3 (int)."),
        ('{"anchors": "text"}', "RoutingSpec: anchors must be a tuple, got 'text' (str)."),
        ('{"anchors": [{"window": {"n": 1, "unit": "frme"}}]}', "anchors[0].window: window: unit must be "),
        ('{"unit": {"blok": 3}}', "unknown key 'unit.blok'. Did you mean \"block\"?"),
        ('{"unit": {}}', "key 'unit.block' must be given, got {} (dict)."),
        ('{"unit": {"block": 0}}', "unit.block: Block: n must be a whole number >= 1, got 0 (int)."),
        ('{"chunks": {"sise": 3}}', "unknown key 'chunks.sise'. Did you mean \"size\"?"),
        ('{"chunks": 256}', "chunks must be a table of keys and values, got 256 (int)."),
        (
            '{"chunks": {"size": 2.5}}',
            'chunks.size must be a whole number >= 1, got 2.5 (float). Use "segment" for one chunk per segment.',
        ),
        (
            '{"chunks": {"size": "segments"}}',
            "chunks.size must be a whole number >= 1, got 'segments' (str). Did you mean \"segment\"?",
        ),
        (
            '{"chunks": {"size": 0}}',
            'chunks.size must be a whole number >= 1, got 0 (int). Use "segment" for one chunk per segment.',
        ),
        ('{"top_k": true}', "RoutingSpec: top_k must be a whole number >= 0, got True (bool)."),
        ('{"stream": {}}', "key 'stream.segments' must be given, got {} (dict)."),
        ('{"stream": {"segments": []}}', "stream.segments: Stream: segments must be a non-empty tuple"),
        ('{"stream": {"segments": [{"tokens": 3}]}}', "key 'stream.segments[0].kind' must be given"),
        ('{"stream": {"segments": [{"kind": "a", "tokens": 1}, {"tokns": 1}]}}', "'stream.segments[1].tokns'"),
        ('{"dropout": {"off": 2}}', "dropout: RouteDropout: off must be a finite number >= 0 and <= 1, got 2 (int)."),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM"),
        (3, "text must be text or UTF-8 bytes, got 3 (int)."),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_json_is_refused_and_why(text: Any, problem: str) -> None:
    with pytest.raises(SpecError, match=re.escape(problem)) as raised:
        RoutingSpec.from_json(text)
    assert str(raised.value).startswith("RoutingSpec.from_json: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"segment": []}', "unknown key 'segment'. Did you mean \"segments\"?"),
        ('{"version": 3, "segments": []}', "version must be 1, got 3 (int)."),
        (
            '{"segments": [{"kind": "video"}]}',
            'segments[0]: Segment("video"): tokens or grid must be given. Hint: tokens=1024',
        ),
        ("7", "the text must be a table of keys and values, got 7 (int)."),
    ],
)
def test_what_json_of_a_stream_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"Stream.from_json: {problem}")):
        Stream.from_json(text)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.toml", "top_k = ", "the text must be TOML in UTF-8: Invalid value"),
        ("a.toml", "top_k = 1\ntop_k = 2", "the text must be TOML in UTF-8: Cannot overwrite a value"),
        ("a.toml", "top_k = 1979-05-27", "top_k must be a whole number >= 0, got datetime.date(1979, 5, 27)"),
        ("a.toml", "dropout = { off = nan }", "must be a finite number >= 0 and <= 1, got nan (float)."),
        ("a.toml", "a = " + "[" * 10**5, "nested a few levels"),
        ("a.toml", "[chunk]\nsize = 3", "unknown key 'chunk'. Did you mean \"chunks\"?"),
        ("a.toml", b"\xff", "the text must be TOML in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        ("a.toml", '[chunks]\nsize = "segments"', "got 'segments' (str). Did you mean \"segment\"?"),
        (
            "a.toml",
            '[[stream.segments]]\nkind = "video"',
            'stream.segments[0]: Segment("video"): tokens or grid must be given. '
            "Hint: tokens=1024, or grid=(16, 30, 47).",
        ),
        ("a.json", "version = 1", "the text must be JSON in UTF-8"),
    ],
)  # fmt: skip
def test_what_files_are_refused(tmp_path: Path, name: str, text: str | bytes, problem: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(SpecError, match=re.escape(problem)) as raised:
        load_spec(path)
    assert str(raised.value).startswith(f"load_spec: {path}: ")


def test_paths_that_are_no_spec_file(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    with pytest.raises(SpecError, match=r"load_spec: path must be a readable file, got .*absent\.toml") as raised:
        load_spec(absent)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SpecError, match=r"load_spec: path must be a readable file, got .*folder\.json"):
        load_spec(tmp_path / "folder.json")
    with pytest.raises(SpecError, match="load_spec: path must be a readable file"):
        load_spec("null\0.json")
    for other in ("spec.yaml", "spec", ""):
        with pytest.raises(SpecError, match=r"load_spec: path must end in \.toml or \.json, got "):
            load_spec(other)
    for no_path in (3, None, b"spec.json"):
        with pytest.raises(SpecError, match="load_spec: path must be a path to a file, got "):
            load_spec(no_path)  # type: ignore[arg-type]

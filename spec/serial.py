"""Specs as JSON and TOML: one form for both, written whole, read strictly.

Tuples are arrays. TOML has no null: there `size = "segment"` is one chunk per segment, and what else is null is left
out. The values that are classes are tables of one key: `{"first": {...}}`, `{"window": {...}}`, `{"block": n}`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from sparsemoc.spec import checks
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError, describe, did_you_mean
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

VERSION = 1
_TIGHT = (",", ":")
_PER_SEGMENT = "segment"
_ANCHORS: dict[str, type[First] | type[Window]] = {"first": First, "window": Window}

_Value = TypeVar("_Value")


def to_json(spec: RoutingSpec) -> str:
    """Return a spec as JSON text: `version: 1` and every field, defaults too."""
    return json.dumps(_table_of(spec), indent=2, allow_nan=False)


def spec_line(spec: RoutingSpec) -> str:
    """Return `to_json` without blanks: equal for equal specs, so that it may stand in for one."""
    return json.dumps(_table_of(spec), separators=_TIGHT, allow_nan=False)


def _table_of(spec: RoutingSpec) -> dict[str, Any]:
    table: dict[str, Any] = {"version": VERSION} | {f.name: getattr(spec, f.name) for f in fields(spec)}
    table["stream"] = None if spec.stream is None else asdict(spec.stream)
    table["chunks"] = asdict(spec.chunks) | {"size": _PER_SEGMENT if spec.chunks.size is None else spec.chunks.size}
    table["anchors"] = [a if isinstance(a, str) else {type(a).__name__.lower(): asdict(a)} for a in spec.anchors]
    table["unit"] = {"block": spec.unit.n} if isinstance(spec.unit, Block) else spec.unit
    table["dropout"] = None if spec.dropout is None else asdict(spec.dropout)
    return table


def stream_to_json(stream: Stream) -> str:
    """Return a stream as JSON text: `version: 1` and every field of every segment, defaults too."""
    return json.dumps({"version": VERSION} | asdict(stream), indent=2)


def stream_line(stream: Stream) -> str:
    """Return `stream_to_json` without blanks: equal for equal streams."""
    return json.dumps({"version": VERSION} | asdict(stream), separators=_TIGHT)


def from_json(text: str | bytes) -> RoutingSpec:
    """Return the spec of a JSON text.

    Keys that are left out take their defaults; `size` may be null or "segment" for one chunk per segment.

    Args:
        text: JSON, as text or as UTF-8 bytes.

    Raises:
        SpecError: not JSON, a key that is unknown (with a "did you mean"), twice there or missing, a version other than
            1, a value outside the rules. The message names the place, as in `anchors[1].window.unit`.
    """
    return read(text, "RoutingSpec.from_json", "JSON", spec_of)


def stream_from_json(text: str | bytes) -> Stream:
    """Return the stream of a JSON text. See `from_json` for what is refused."""
    return read(text, "Stream.from_json", "JSON", lambda value: _stream(versioned(value), ""))


def load_spec(path: str | os.PathLike[str]) -> RoutingSpec:
    """Return the spec of a .toml or .json file.

    Args:
        path: the file; its suffix says what it holds. Both hold the same tables. TOML leaves out what is null, except
            for `size = "segment"`.

    Raises:
        SpecError: no such file, another suffix, or what `RoutingSpec.from_json` raises.

    Example:
        A file `spec.toml`::

            version = 1
            top_k = 5
            anchors = ["text", "shot", { window = { n = 1, unit = "chunk" } }]
            causal = "chunk"

            [chunks]
            size = 1280

            [[stream.segments]]
            kind = "video"
            grid = [16, 30, 47]
    """
    if not isinstance(path, (str, os.PathLike)):
        raise SpecError(
            f'load_spec: path must be a path to a file, got {describe(path)}. Hint: load_spec("spec.toml").'
        )
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in (".toml", ".json"):
        raise SpecError(f"load_spec: path must end in .toml or .json, got {describe(name)}.")
    try:
        content = Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise SpecError(f"load_spec: path must be a readable file, got {describe(name)}: {error}.") from error
    return read(content, f"load_spec: {name}", suffix[1:].upper(), spec_of)


def read(text: object, where: str, form: str, build: Callable[[object], _Value]) -> _Value:
    """Parse and build; every way in which a text can be wrong ends in a SpecError that starts with `where`."""
    if not isinstance(text, (str, bytes)):
        raise SpecError(f"{where}: text must be text or UTF-8 bytes, got {describe(text)}.")
    try:
        return build(_PARSERS[form](text if isinstance(text, str) else text.decode()))
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    except RecursionError:
        raise SpecError(f"{where}: the text must be nested a few levels at most, got too many.") from None
    except ValueError as error:  # a syntax error, bytes that are not UTF-8, a number of too many digits
        raise SpecError(f"{where}: the text must be {form} in UTF-8: {error}.") from error


def _parsed_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refused_constant)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in pairs:
        if key in table:
            raise SpecError(f"key {describe(key)} must appear once in its table, got it twice.")
        table[key] = value
    return table


def _refused_constant(name: str) -> object:
    raise SpecError(f"a number must be finite, got {name}.")


_PARSERS: dict[str, Callable[[str], object]] = {"JSON": _parsed_json, "TOML": tomllib.loads}


def versioned(value: object) -> object:
    """Check and take away the version of a whole text; what is no table is left to the caller's check."""
    if not isinstance(value, dict):
        return value
    table = dict(value)
    version = table.pop("version", VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version != VERSION:
        raise SpecError(f"version must be {VERSION}, got {describe(version)}. Hint: another sparsemoc may read it.")
    return table


def spec_of(value: object) -> RoutingSpec:
    """Return the spec of a parsed text."""
    table = checked_table(versioned(value), "", ("version", *(f.name for f in fields(RoutingSpec))))
    if table.get("stream") is not None:
        table["stream"] = _stream(table["stream"], "stream")
    if "chunks" in table:
        table["chunks"] = _chunks(table["chunks"])
    if isinstance(table.get("anchors"), list):
        table["anchors"] = [_anchor(item, f"anchors[{i}]") for i, item in enumerate(table["anchors"])]
    if isinstance(table.get("unit"), dict):
        table["unit"] = built(
            Block, {"n": checked_table(table["unit"], "unit", ("block",), ("block",))["block"]}, "unit.block"
        )
    if table.get("dropout") is not None:
        table["dropout"] = of_fields(RouteDropout, table["dropout"], "dropout")
    return RoutingSpec(**table)


def _stream(value: object, path: str) -> Stream:
    table = checked_table(value, path, ("segments",), ("segments",))
    place = f"{path}.segments" if path else "segments"
    if isinstance(table["segments"], list):
        table["segments"] = [
            of_fields(Segment, item, f"{place}[{i}]", ("kind",)) for i, item in enumerate(table["segments"])
        ]
    return built(Stream, table, place)


def _chunks(value: object) -> Chunks:
    table = checked_table(value, "chunks", tuple(f.name for f in fields(Chunks)))
    if table.get("size") == _PER_SEGMENT:
        table["size"] = None
    elif table.get("size") is not None:
        near = did_you_mean(table["size"], (_PER_SEGMENT,)).strip()
        hint = near or f'Use "{_PER_SEGMENT}" for one chunk per segment.'  # not None, which TOML cannot say
        table["size"] = checks.whole(table["size"], "chunks.size", least=1, hint=hint)
    return built(Chunks, table, "chunks")


def _anchor(value: object, path: str) -> object:
    """Return a word as it is (RoutingSpec checks it), and the anchor of a table of one key."""
    if not isinstance(value, dict):
        return value
    table = checked_table(value, path, tuple(_ANCHORS))
    if len(table) != 1:
        raise SpecError(f'{path} must have one key, "first" or "window", got {describe(list(table))}.')
    [(name, content)] = table.items()
    return of_fields(_ANCHORS[name], content, f"{path}.{name}", ("n",))


def of_fields(make: Callable[..., _Value], value: object, path: str, required: tuple[str, ...] = ()) -> _Value:
    """Build a value class from a table whose keys are its fields."""
    allowed = tuple(f.name for f in fields(make))  # type: ignore[arg-type]  # each is a dataclass
    return built(make, checked_table(value, path, allowed, required), path)


def built(make: Callable[..., _Value], table: Mapping[str, object], path: str) -> _Value:
    """Build a value from a checked table; what it refuses is told with the path."""
    try:
        return make(**table)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def checked_table(value: object, path: str, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a copy of a table whose keys are all allowed and that holds the required ones."""
    if not isinstance(value, dict):
        raise SpecError(f"{path or 'the text'} must be a table of keys and values, got {describe(value)}.")
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in allowed:
            place = prefix + (key if len(key) <= 80 else key[:77] + "...")
            listed = ", ".join(allowed)
            raise SpecError(f"unknown key {place!r}.{did_you_mean(key, allowed)} The keys here are {listed}.")
    for key in required:
        if key not in value:
            raise SpecError(f"key {prefix + key!r} must be given, got {describe(value)}.")
    return dict(value)

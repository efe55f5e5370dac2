"""The token-level rules of the oracle: chunk cuts, anchors, units of queries, candidates.

Everything is recomputed here from the fields of `Stream` and `RoutingSpec`. Nothing of the spec compiler is imported,
so an error there cannot hide here. Positions are stream positions; query i of a sample stands at q_start + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
#: A selection, (heads, queries, slots).
Routes = NDArray[np.int32]

#: The shot of global text, which belongs to none.
NO_SHOT = -1


@dataclass(frozen=True)
class Tokens:
    """One entry per token of a stream. `frame` counts within the segment, 0 where there is no grid."""

    kind: NDArray[np.str_]
    segment: Ints
    shot: Ints
    frame: Ints
    has_grid: Bools
    chunk: Ints


@dataclass(frozen=True)
class Unit:
    """The queries that share one selection: their numbers, own chunk, and the position of the nominal first one."""

    queries: tuple[int, ...]
    chunk: int
    first: int


def _parts(count: int, most: int, tail: str) -> list[int]:
    if tail == "short":
        return [min(most, count - start) for start in range(0, count, most)]
    parts = (count + most - 1) // most
    return [(count - number + parts - 1) // parts for number in range(parts)]


def _chunk_lengths(spec: RoutingSpec, segment: Segment) -> list[int]:
    size, tail = spec.chunks.size, spec.chunks.tail
    if size is None:
        return [segment.tokens]
    if spec.chunks.align != "frame" or segment.grid is None:
        return _parts(segment.tokens, size, tail)
    frames, height, width = segment.grid
    frame = height * width
    if frame <= size:
        return [count * frame for count in _parts(frames, size // frame, tail)]
    return _parts(frame, size, tail) * frames


def chunk_bounds(spec: RoutingSpec, stream: Stream) -> tuple[int, ...]:
    """Return the cuts: chunk c holds the tokens bounds[c] ... bounds[c + 1] - 1."""
    if spec.chunks.bounds is not None:
        return spec.chunks.bounds
    bounds = [0]
    for segment in stream.segments:
        for length in _chunk_lengths(spec, segment):
            bounds.append(bounds[-1] + length)
    return tuple(bounds)


def _shot_numbers(stream: Stream) -> list[int]:
    """Number the shots: segments with one given number share one, others that are not text stand alone."""
    names: list[object] = []
    for index, segment in enumerate(stream.segments):
        if segment.shot is not None:
            names.append(("given", segment.shot))
        else:
            names.append(None if segment.kind == "text" else ("alone", index))
    return [NO_SHOT if name is None else names.index(name) for name in names]


@lru_cache(maxsize=256)
def tokens_of(spec: RoutingSpec, stream: Stream) -> Tokens:
    """Write down for every token its kind, segment, shot, frame and chunk."""
    kind, number, shot, frame, has_grid = [], [], [], [], []
    shots = _shot_numbers(stream)
    for index, segment in enumerate(stream.segments):
        per_frame = segment.tokens if segment.grid is None else segment.grid[1] * segment.grid[2]
        for position in range(segment.tokens):
            kind.append(segment.kind)
            number.append(index)
            shot.append(shots[index])
            frame.append(position // per_frame)
            has_grid.append(segment.grid is not None)
    bounds = chunk_bounds(spec, stream)
    lengths = [end - start for start, end in pairwise(bounds)]
    chunk = np.repeat(np.arange(len(lengths)), lengths)
    return Tokens(np.array(kind), np.array(number), np.array(shot), np.array(frame), np.array(has_grid), chunk)


def valid_tokens(stream: Stream, key_lengths: Sequence[int] | None) -> Bools:
    """Return which tokens are no padding: the first `key_lengths[s]` of segment s, clamped to [0, tokens]."""
    if key_lengths is None:
        return np.ones(sum(segment.tokens for segment in stream.segments), bool)
    parts = [np.arange(segment.tokens) < length for segment, length in zip(stream.segments, key_lengths, strict=False)]
    return np.concatenate(parts)


def _first_mask(anchor: First, tokens: Tokens) -> Bools:
    """Return which keys `first(n, unit, of)` gives to every query."""
    count = len(tokens.kind)
    kept = np.zeros(count, bool)
    groups = [np.ones(count, bool)]
    if anchor.of == "shot":
        groups = [tokens.shot == shot for shot in np.unique(tokens.shot) if shot != NO_SHOT]
    for group in groups:
        if anchor.unit == "token":
            kept[np.flatnonzero(group)[: anchor.n]] = True
            continue
        frames: list[tuple[int, int]] = []
        for token in np.flatnonzero(group & tokens.has_grid):
            name = (int(tokens.segment[token]), int(tokens.frame[token]))
            if name not in frames:
                frames.append(name)
            kept[token] |= frames.index(name) < anchor.n
    return kept


def _window_mask(anchor: Window, tokens: Tokens, query: Ints, key: Ints) -> Bools:
    places = {"token": np.arange(len(tokens.kind)), "chunk": tokens.chunk, "frame": tokens.frame}[anchor.unit]
    near: Bools = np.abs(places[query] - places[key]) <= anchor.n
    if anchor.unit == "frame":
        near &= (tokens.segment[query] == tokens.segment[key]) & tokens.has_grid[query]
    return near


def _one_anchor(anchor: str | First | Window, tokens: Tokens, query: Ints, key: Ints) -> Bools:
    """Return the keys of one anchor; `query` is a column and `key` a row of positions."""
    if isinstance(anchor, First):
        return np.broadcast_to(_first_mask(anchor, tokens)[key], (len(query), key.shape[1]))
    if isinstance(anchor, Window):
        return _window_mask(anchor, tokens, query, key)
    text = tokens.kind[key] == "text"
    same_segment = tokens.segment[query] == tokens.segment[key]
    same_shot = tokens.shot[query] == tokens.shot[key]
    kept: Bools
    if anchor == "text":
        kept = np.broadcast_to(text, same_shot.shape)
    elif anchor == "caption":
        kept = text & ((tokens.shot[key] == NO_SHOT) | same_shot)
    elif anchor == "shot":
        kept = np.where(tokens.shot[query] == NO_SHOT, same_segment, same_shot)
    elif anchor == "segment":
        kept = same_segment
    elif anchor == "frame":
        kept = same_segment & (tokens.frame[query] == tokens.frame[key])
    else:
        kept = tokens.chunk[query] == tokens.chunk[key]
    return kept


@lru_cache(maxsize=256)
def anchor_mask(spec: RoutingSpec, stream: Stream, q_start: int = 0, q_tokens: int | None = None) -> Bools:
    """Return A(i) as (queries, keys), padding not yet taken out; under "token" without the keys later than i."""
    tokens = tokens_of(spec, stream)
    count = len(tokens.kind)
    q_tokens = count - q_start if q_tokens is None else q_tokens
    query = np.arange(q_start, q_start + q_tokens)[:, None]
    key = np.arange(count)[None, :]
    mask = np.zeros((q_tokens, count), bool)
    for anchor in spec.anchors:
        mask |= _one_anchor(anchor, tokens, query, key)
    if spec.causal == "token":
        mask &= key <= query
    mask.flags.writeable = False  # it is cached
    return mask


def dense_queries(spec: RoutingSpec, stream: Stream, q_start: int, q_tokens: int) -> Bools:
    """Return which queries attend to every key and have no routes."""
    kind = tokens_of(spec, stream).kind[q_start : q_start + q_tokens]
    return np.isin(kind, spec.dense_queries)


def units_of(spec: RoutingSpec, stream: Stream, q_start: int, present: Bools) -> list[Unit]:
    """Group the routed queries that are present (valid and not dense); Block(n) counts from the chunk's start."""
    bounds, chunk_of = chunk_bounds(spec, stream), tokens_of(spec, stream).chunk
    size = 1 if spec.unit == "token" else spec.unit.n  # type: ignore[union-attr]
    groups: dict[tuple[int, int], list[int]] = {}
    for query in np.flatnonzero(present).tolist():
        position = q_start + query
        chunk = int(chunk_of[position])
        first = position - (position - bounds[chunk]) % size
        groups.setdefault((chunk, first), []).append(query)
    return [Unit(tuple(queries), chunk, first) for (chunk, first), queries in groups.items()]


def candidate_mask(
    spec: RoutingSpec, stream: Stream, units: Sequence[Unit], q_start: int, q_tokens: int, valid: Bools
) -> Bools:
    """Return C as (units, chunks): routable, allowed by causal, with a valid key that some member has not anchored."""
    tokens = tokens_of(spec, stream)
    chunks = int(tokens.chunk[-1]) + 1
    anchored = anchor_mask(spec, stream, q_start, q_tokens)
    mask = np.zeros((len(units), chunks), bool)
    for chunk in range(chunks):
        inside = tokens.chunk == chunk
        kind = tokens.kind[inside][0]
        if (kind == "text") if spec.routable is None else (kind not in spec.routable):
            continue
        lacks = np.any(~anchored[:, inside & valid], axis=1)
        for number, unit in enumerate(units):
            allowed = spec.causal == "none" or chunk < unit.chunk
            mask[number, chunk] = allowed and bool(lacks[list(unit.queries)].any())
    return mask

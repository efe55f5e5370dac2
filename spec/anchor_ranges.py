"""Which contiguous key ranges each anchor gives to a query, from the stream alone (padding included)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.ranges import Range, Ranges, union
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream


class AnchorRanges:
    """The static anchors of a spec over a stream: everything but token windows, which move with each query."""

    def __init__(self, spec: RoutingSpec, stream: Stream, chunk_bounds: NDArray[np.int64]) -> None:
        self._spec = spec
        self._stream = stream
        self._chunk_bounds = chunk_bounds
        self._shared = [piece for anchor in spec.anchors if isinstance(anchor, First) for piece in self._first(anchor)]
        self.reach = max((a.n for a in spec.anchors if isinstance(a, Window) and a.unit == "token"), default=-1)
        self.by_frame = any(a == "frame" or (isinstance(a, Window) and a.unit == "frame") for a in spec.anchors)

    def of(self, segment: int, frame: int, chunk: int) -> Ranges:
        """Return the ranges of a query in this segment, frame (of the segment) and chunk."""
        pieces = list(self._shared)
        for anchor in self._spec.anchors:
            if isinstance(anchor, Window):
                pieces += self._window(anchor, segment, frame, chunk)
            elif isinstance(anchor, str):
                pieces += self._word(anchor, segment, frame, chunk)
        if self._stream.segments[segment].kind in self._spec.dense_queries:
            past = self._spec.dense_scope == "past"
            pieces.append((0, int(self._chunk_bounds[chunk + 1]) if past else self._stream.tokens))
        return union(pieces)

    def _segments(self, keep: list[bool]) -> list[Range]:
        bounds = self._stream.bounds
        return [(bounds[s], bounds[s + 1]) for s, kept in enumerate(keep) if kept]

    def _word(self, anchor: str, segment: int, frame: int, chunk: int) -> list[Range]:
        segments, shots = self._stream.segments, self._stream.shots
        own = shots[segment]
        if anchor == "text":
            return self._segments([s.kind == "text" for s in segments])
        if anchor == "caption":
            return self._segments(
                [s.kind == "text" and (shots[i] is None or shots[i] == own) for i, s in enumerate(segments)]
            )
        if anchor == "shot" and own is not None:
            return self._segments([shot == own for shot in shots])
        if anchor == "chunk":
            return [self._chunk_span(chunk, chunk + 1)]
        if anchor == "frame" and segments[segment].grid is not None:
            return [self._frame_span(segment, frame, frame + 1)]
        return [(self._stream.bounds[segment], self._stream.bounds[segment + 1])]

    def _window(self, anchor: Window, segment: int, frame: int, chunk: int) -> list[Range]:
        grid = self._stream.segments[segment].grid
        if anchor.unit == "chunk":
            last = len(self._chunk_bounds) - 1
            return [self._chunk_span(max(0, chunk - anchor.n), min(last, chunk + anchor.n + 1))]
        if anchor.unit == "frame" and grid is not None:
            return [self._frame_span(segment, max(0, frame - anchor.n), min(grid[0], frame + anchor.n + 1))]
        return []

    def _chunk_span(self, first: int, stop: int) -> Range:
        return (int(self._chunk_bounds[first]), int(self._chunk_bounds[stop]))

    def _frame_span(self, segment: int, first: int, stop: int) -> Range:
        start, frame_tokens = self._stream.bounds[segment], self._stream.segments[segment].frame_tokens
        return (start + first * frame_tokens, start + stop * frame_tokens)

    def _first(self, anchor: First) -> list[Range]:
        """Walk the segments in stream order, per shot where asked, and take units until n are taken."""
        left: dict[int | None, int] = {}
        pieces: list[Range] = []
        for segment, start, shot in zip(
            self._stream.segments, self._stream.bounds[:-1], self._stream.shots, strict=True
        ):
            if anchor.of == "shot" and shot is None:
                continue
            if anchor.unit == "frame" and segment.grid is None:
                continue
            key = shot if anchor.of == "shot" else None
            size = segment.frame_tokens if anchor.unit == "frame" else 1
            units = min(left.get(key, anchor.n), segment.tokens // size)
            left[key] = left.get(key, anchor.n) - units
            pieces.append((start, start + units * size))
        return pieces

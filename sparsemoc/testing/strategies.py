"""Hypothesis strategies that draw a whole `Problem`, simple things first, so that shrinking ends at a tiny one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from sparsemoc.spec.anchors import WORDS, First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing.oracle_rules import chunk_bounds
from sparsemoc.testing.problems import DATA, STRIDES, Problem

#: Bound on queries * keys * heads * batch of a problem.
MAX_PAIRS = 2**14

DTYPES = ("float32", "float64", "float16") + (("bfloat16",) if importlib.util.find_spec("ml_dtypes") else ())

_UNITS: st.SearchStrategy[str | Block] = st.sampled_from(("token", "token", Block(1), Block(2), Block(3), Block(64)))

#: Data whose scores have no ties and no lost digits: nearly every row of it is decidable.
GENERIC = ("normal",)


def dropouts() -> st.SearchStrategy[RouteDropout]:
    """Draw route dropout, from none at all to nearly everything."""
    return st.builds(
        RouteDropout,
        off=st.sampled_from((0.0, 1.0, 0.5, 0.3)),
        into=st.sampled_from((0.0, 1.0, 2.5, 50.0)),
        into_max=st.integers(0, 4),
    )


def anchors() -> st.SearchStrategy[Any]:
    """Draw one anchor."""
    counts = st.sampled_from((1, 2, 0, 3, 1, 2, 5, 1000))
    return st.one_of(
        st.sampled_from(WORDS),
        st.builds(First, counts, st.sampled_from(("token", "frame")), st.sampled_from(("stream", "shot"))),
        st.builds(Window, counts, st.sampled_from(("token", "frame", "chunk"))),
    )


def partial_anchors() -> st.SearchStrategy[Any]:
    """Draw an anchor that tends to cover a chunk in part."""
    counts = st.integers(1, 5)
    return st.one_of(
        st.builds(First, counts, st.just("token"), st.sampled_from(("stream", "shot"))),
        st.builds(Window, counts, st.just("token")),
        st.just("frame"),
    )


@st.composite
def segments(draw: st.DrawFn, most: int, size: int) -> Segment:
    """Draw a segment of at most `most` tokens whose lengths sit around multiples of the chunk size."""
    kind = draw(st.sampled_from(("video", "grid", "text", "audio", "video", "grid", "video")))
    shot = draw(st.sampled_from((None, 0, 1, 7)))
    if kind == "grid":
        grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
        if grid[0] * grid[1] * grid[2] <= most:
            return Segment(draw(st.sampled_from(("video", "audio"))), shot=shot, grid=grid)
        kind = "video"
    lengths = sorted({max(1, min(most, n)) for n in (1, 2, size - 1, size, size + 1, 2 * size + 1, 3 * size + 2)})
    return Segment(kind, draw(st.sampled_from(lengths)), shot=shot)


@st.composite
def streams(draw: st.DrawFn, most: int, size: int, least: int = 1) -> Stream:
    """Draw a stream of at most `most` tokens and, where they suffice, at least `least` segments."""
    count = draw(st.integers(least, 5))
    found: list[Segment] = []
    for _ in range(count):
        left = most - sum(segment.tokens for segment in found)
        if left < 1:
            break
        found.append(draw(segments(left, size)))
    return Stream(tuple(found))


@st.composite
def chunks(draw: st.DrawFn, size: int, stream: Stream | None) -> Chunks:
    """Draw a chunking; given bounds only for one known stream."""
    kind = draw(st.sampled_from(("size", "short", "frame", "frame short", "segment", "bounds", "size", "short")))
    if kind == "bounds" and stream is not None:
        # The segment boundaries are summed here: the strategies share nothing with the compiler either.
        cuts, total = {0}, 0
        for segment in stream.segments:
            total += segment.tokens
            cuts.add(total)
        more = draw(st.lists(st.integers(1, total), max_size=4))
        return Chunks(bounds=tuple(sorted(cuts | set(more))))
    if kind == "segment":
        return Chunks(size=None)
    align = "frame" if kind.startswith("frame") else None
    return Chunks(size=size, align=align, tail="short" if kind.endswith("short") else "balanced")


def _top_k(draw: st.DrawFn, heads: int, most: int, ample: bool) -> int | tuple[int, ...]:
    one = st.sampled_from((1, 2, 3)) if ample else st.integers(0, most + 1)
    if heads > 1 and draw(st.booleans()):
        return tuple(draw(one) for _ in range(heads))
    return draw(one)


@st.composite
def specs(
    draw: st.DrawFn,
    stream: Sequence[Stream],
    size: int,
    heads: int,
    *,
    dropout: bool | None,
    ample: bool,
    anchor: st.SearchStrategy[Any],
) -> RoutingSpec:
    """Draw a routing for known streams; an `ample` one is likely to leave queries something to choose."""
    cut = draw(chunks(size, stream[0] if len(stream) == 1 else None))
    most = max(len(chunk_bounds(RoutingSpec(chunks=cut), one)) - 1 for one in stream)
    if dropout is None:
        dropout = draw(st.booleans()) and draw(st.booleans())
    return RoutingSpec(
        chunks=cut,
        top_k=_top_k(draw, heads, min(most, 6), ample),
        anchors=tuple(draw(anchor) for _ in range(draw(st.integers(0, 2 if ample else 3)))),
        causal=draw(st.sampled_from(("none", "chunk", "token"))),
        routable=draw(st.sampled_from((None, ("video", "audio", "text")) if ample else (None, ("video",), ()))),
        dense_queries=draw(st.sampled_from((("text",), (), ("text", "audio")))),
        dense_scope=draw(st.sampled_from(("all", "past"))),
        unit=draw(_UNITS),
        dropout=draw(dropouts()) if dropout else None,
    )


def _lengths(draw: st.DrawFn, one: Stream) -> tuple[int, ...]:
    """Draw valid lengths, now and then out of range: they clamp."""
    kinds = st.sampled_from(("all", "some", "none", "over", "under", "all", "some", "some"))
    found = []
    for segment in one.segments:
        kind = draw(kinds)
        some = {"all": segment.tokens, "none": 0, "over": segment.tokens + 5, "under": -3}
        found.append(some[kind] if kind in some else draw(st.integers(0, segment.tokens)))
    return tuple(found)


def _heads(draw: st.DrawFn) -> tuple[int, int]:
    return draw(st.sampled_from(((1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (3, 1))))


def _edge(limit: int, heads: int, batch: int) -> int:
    """Return the most tokens whose square keeps within the bound on pairs."""
    return int((limit / heads / batch) ** 0.5)


def _queries(draw: st.DrawFn, tokens: int) -> dict[str, Any]:
    """Draw a query range: all, the last ones, or any."""
    if not draw(st.booleans()):
        return {}
    q_tokens = draw(st.integers(1, tokens))
    return {"q_tokens": q_tokens, "q_start": draw(st.one_of(st.none(), st.integers(0, tokens - q_tokens)))}


def _numbers(draw: st.DrawFn, data: Sequence[str], dtypes: Sequence[str]) -> dict[str, Any]:
    """Draw what the arrays hold and how they are shown."""
    return {
        "head_dim": draw(st.sampled_from((4, 1, 3, 8, 16, 17, 40))),
        "v_head_dim": draw(st.sampled_from((4, 1, 5, 16, 33))),
        "dtype": draw(st.sampled_from(tuple(dtypes))),
        "data": draw(st.sampled_from(tuple(data))),
        "data_seed": draw(st.integers(0, 2**32 - 1)),
        "axes": draw(st.sampled_from(("bshd", "bhsd"))),
        "scale": draw(st.sampled_from((None, 1.0, 0.3))),
        "batch_start": draw(st.sampled_from((0, 5))),
        "head_start": draw(st.sampled_from((0, 3))),
        "strides": draw(st.sampled_from(STRIDES)),
    }


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    data: Sequence[str] = tuple(DATA),
    dtypes: Sequence[str] = DTYPES,
    dropout: bool | None = None,
    packed: bool | None = None,
    batches: Sequence[int] = (1, 1, 2, 3),
    padding: bool | None = None,
    pairs: int = MAX_PAIRS,
    anchor: st.SearchStrategy[Any] | None = None,
) -> Problem:
    """Draw a problem. None leaves a choice to the draw; True or False makes it."""
    # Half of the problems are held to sizes at which something is left to choose; drawn freely, few are.
    ample = draw(st.booleans())
    packed = draw(st.sampled_from((False, True, False))) if packed is None else packed
    heads, kv_heads = _heads(draw)
    batch = draw(st.sampled_from(tuple(batches)))
    size = draw(st.sampled_from((4, 2, 3) if ample else (4, 1, 2, 3, 5, 8, 17)))
    most = draw(st.sampled_from((64,) if ample else (16, 4, 40, 64)))
    edge = min(most, _edge(pairs, heads, batch) // (batch if packed else 1))
    found = tuple(draw(streams(max(edge, 1), size, 3 if ample else 1)) for _ in range(batch if packed else 1))
    anchor = anchors() if anchor is None else anchor
    spec = draw(specs(found, size, heads, dropout=dropout, ample=ample, anchor=anchor))
    padded = draw(st.booleans()) if padding is None else padding
    training = spec.dropout is not None and (dropout is True or draw(st.booleans()))
    return Problem(
        spec=spec,
        streams=found,
        batch=1 if packed else batch,
        heads=heads,
        kv_heads=kv_heads,
        packed=packed,
        key_lengths=tuple(_lengths(draw, one) for one in (found if packed else found * batch)) if padded else None,
        training=training,
        seed=draw(st.sampled_from((0, 1, 2**32 + 5, 2**63, -1))) if training else None,
        **({} if packed else _queries(draw, found[0].tokens)),
        **_numbers(draw, data, dtypes),
    )

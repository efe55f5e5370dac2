"""Lengths, streams, layouts, centroids and plans that do not fit: the exception and its whole text."""

# mypy: disable-error-code="arg-type"
# Arguments of the wrong kind are what this file is about.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


#: A call; the exception; the text. One entry for each way to be wrong.
CASES: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "keys that are not the stream's": (
        lambda c: c.attention(k=zeros(2, 14, 2, 8), v=zeros(2, 14, 2, 6)), moc.ShapeError,
        "attention: `k` must have 15 tokens, those of the stream, got 14. Hint: check the segments.",
    ),
    "keys that are not the stream's, of route": (
        lambda c: c.route(q=c.Q[:, :3], k=zeros(2, 16, 2, 8)), moc.ShapeError,
        "route: `k` must have 15 tokens, those of the stream, got 16. Hint: check the segments.",
    ),
    "more queries than the stream": (
        lambda c: c.attention(q=zeros(2, 16, 4, 8)), moc.ShapeError,
        "attention: `q` must have at most 15 tokens, those of the stream, got 16. Queries are a part of the stream.",
    ),
    "a stream that is too short": (
        lambda c: c.grads(spec=c.FREE, stream=moc.Stream((moc.Segment("video", 14),))), moc.ShapeError,
        "attention_grads: `q` must have at most 14 tokens, those of the stream, got 15. "
        "Queries are a part of the stream.",
    ),
    "more queries than the stream, heads first": (
        lambda c: c.attention(
            q=zeros(2, 4, 16, 8), k=zeros(2, 2, 15, 8), v=zeros(2, 2, 15, 6), axes="bhsd", q_start=0
        ),
        moc.ShapeError,
        "attention: `q` must have at most 15 tokens, those of the stream, got 16. Queries are a part of the stream.",
    ),
    "more queries than keys": (
        lambda c: c.attention(q=zeros(2, 16, 4, 8), spec=c.FREE), moc.ShapeError,
        "attention: `q` must have at most 15 tokens, those of `k`, got 16. "
        "Without a stream the keys are one video segment.",
    ),
    "more queries than the stream, with centroids": (
        lambda c: c.route(q=zeros(2, 16, 4, 8), k=None, centroids=c.CENTROIDS), moc.ShapeError,
        "route: `q` must have at most 15 tokens, those of the stream, got 16. Queries are a part of the stream.",
    ),
    "packed queries and keys": (
        lambda c: c.packed(q=zeros(29, 4, 8)), moc.ShapeError,
        "attention: `q` must have 30 tokens, got 29. The streams hold 30 tokens, and the queries are 30 of them "
        "from 0 on.",
    ),
    "too few streams": (
        lambda c: c.packed(stream=(c.STREAM,)), moc.ShapeError,
        "attention: `q` must have 15 tokens, got 30. The stream holds 15 tokens, and the queries are 15 of them "
        "from 0 on.",
    ),
    "too many streams": (
        lambda c: c.packed(stream=(c.STREAM,) * 3), moc.ShapeError,
        "attention: `q` must have 45 tokens, got 30. The streams hold 45 tokens, and the queries are 45 of them "
        "from 0 on.",
    ),
    "no streams": (
        lambda c: c.packed(stream=()), moc.SpecError,
        "plan: stream must be a Stream, or a tuple of them for a packed batch, got () (tuple).",
    ),
    "streams of another kind": (
        lambda c: c.packed(stream=(c.STREAM, 15)), moc.SpecError, "plan: stream must hold Stream values, got 15 (int).",
    ),
    "a stream of another kind": (
        lambda c: c.attention(spec=c.FREE, stream=15), moc.ShapeError,
        "attention: stream must be one Stream for rank 4, which the whole batch shares, got 15 (int). "
        "A tuple of streams goes with packed arrays (tokens, heads, head_dim).",
    ),
    "another stream than the spec's": (
        lambda c: c.attention(stream=moc.Stream((moc.Segment("video", 15),))), moc.SpecError,
        "plan: stream must be left out, or equal the stream that the spec holds. "
        "Hint: dataclasses.replace(spec, stream=None) frees the spec from its stream.",
    ),
    "q_start beyond": (
        lambda c: c.attention(q_start=1), moc.SpecError,
        "attention: q_start + the tokens of `q` must be at most 15, those of the stream, got 1 + 15 = 16.",
    ),
    "q_start negative": (
        lambda c: c.attention(q=c.Q[:, :3], q_start=-1), moc.SpecError,
        "attention: q_start must be a whole number >= 0, got -1 (int). It is the stream position of the first query.",
    ),
    "q_start of another kind": (
        lambda c: c.route(q_start="0"), moc.SpecError,
        "route: q_start must be a whole number >= 0, got '0' (str). It is the stream position of the first query.",
    ),
    "q_start packed": (
        lambda c: c.packed(q_start=0), moc.SpecError,
        "attention: q_start must be left out for packed arrays, got 0. There L_q = L_k.",
    ),
    "key_lengths of another shape": (
        lambda c: c.attention(key_lengths=np.zeros((2, 3), int)), moc.ShapeError,
        "attention: `key_lengths` must have shape (batch, segments) = (2, 2), got (2, 3). "
        "It holds the valid tokens of each segment.",
    ),
    "key_lengths of another rank": (
        lambda c: c.attention(key_lengths=[3, 12]), moc.ShapeError,
        "attention: `key_lengths` must have shape (batch, segments) = (2, 2), got (2,). "
        "It holds the valid tokens of each segment.",
    ),
    "packed key_lengths": (
        lambda c: c.packed(key_lengths=np.zeros((1, 2), int)), moc.ShapeError,
        "attention: `key_lengths` must have shape (samples, most segments) = (2, 2), got (1, 2). "
        "It holds the valid tokens of each segment.",
    ),
    "key_lengths of floats": (
        lambda c: c.pool(key_lengths=np.zeros((2, 2))), moc.ShapeError,
        "pool: `key_lengths` must be an integer array, got dtype float64. Hint: array.astype(numpy.int32).",
    ),
    "key_lengths of booleans": (
        lambda c: c.attention(key_lengths=np.ones((2, 2), bool)), moc.ShapeError,
        "attention: `key_lengths` must be an integer array, got dtype bool. Hint: array.astype(numpy.int32).",
    ),
    "ragged key_lengths": (
        lambda c: c.attention(key_lengths=[[3], [3, 12]]), moc.ShapeError,
        "attention: `key_lengths` must be an integer array, got [[3], [3, 12]] (list).",
    ),
    "masked key_lengths": (
        lambda c: c.attention(key_lengths=np.ma.ones((2, 2), int)), moc.ShapeError,
        "attention: `key_lengths` must not be a masked array. Hint: array.filled(0).",
    ),
    "key_lengths as a number": (
        lambda c: c.attention(key_lengths=12), moc.UnsupportedError,
        "attention: `key_lengths` must be a NumPy, CuPy or JAX array or a torch tensor, got 12 (int). "
        "Hint: pass numpy.asarray(array).",
    ),
    "no layout": (
        lambda c: c.attend(layout=c.PLAN), moc.SpecError,
        "attend: layout must be a Layout, got "
        "Plan(spec=RoutingSpec(stream=Stream(segments=(Segment(kind='text', tokens=3, ... (Plan). "
        "Hint: sparsemoc.route(q, k, spec).",
    ),
    "a layout of other lengths": (
        lambda c: c.attend(q=c.Q[:, :3]), moc.ShapeError,
        "attend: `q` must have 15 tokens, got 3. The stream holds 15 tokens, and the queries are 15 of them from 0 on.",
    ),
    "a layout of another batch": (
        lambda c: c.attend(q=c.Q[:1], k=c.K[:1], v=c.V[:1]), moc.ShapeError,
        "attend: `q` must have (batch, heads) = (2, 4) of the layout, got (1, 4).",
    ),
    "a packed layout": (
        lambda c: c.attend(layout=c.PACKED), moc.ShapeError,
        "attend: `q` must have rank 3, as the layout was made for, got 4.",
    ),
    "neither keys nor centroids": (
        lambda c: c.route(k=None), moc.ShapeError,
        "route: exactly one of `k` and `centroids` must be given. Hint: route(q, k, spec).",
    ),
    "keys and centroids": (
        lambda c: c.route(centroids=c.CENTROIDS), moc.ShapeError,
        "route: exactly one of `k` and `centroids` must be given. Hint: route(q, k, spec).",
    ),
    "centroids of another shape": (
        lambda c: c.route(k=None, centroids=c.CENTROIDS[:, :, :3]), moc.ShapeError,
        "route: `centroids` must be float32 (batch, kv_heads, chunks, head_dim) = (2, kv_heads, 4, 8), as pool gives "
        "them, got float32 (2, 2, 3, 8).",
    ),
    "centroids of another dtype": (
        lambda c: c.route(k=None, centroids=c.CENTROIDS.astype(np.float64)), moc.ShapeError,
        "route: `centroids` must be float32 (batch, kv_heads, chunks, head_dim) = (2, kv_heads, 4, 8), as pool gives "
        "them, got float64 (2, 2, 4, 8).",
    ),
    "centroids of other heads": (
        lambda c: c.route(k=None, centroids=zeros(2, 3, 4, 8)), moc.ShapeError,
        "route: `q` must have a multiple of the heads of `centroids`, got 4 and 3.",
    ),
    "centroids of no heads": (
        lambda c: c.route(k=None, centroids=zeros(2, 0, 4, 8)), moc.ShapeError,
        "route: `q` must have a multiple of the heads of `centroids`, got 4 and 0.",
    ),
    "centroids without a stream": (
        lambda c: c.route(k=None, spec=c.FREE, centroids=c.CENTROIDS), moc.SpecError,
        "route: stream must be given where `k` is not and the spec has none. "
        'Hint: stream=Stream((Segment("video", tokens),)).',
    ),
    "pool without a plan": (
        lambda c: c.pool(plan=c.SPEC), moc.SpecError,
        "pool: plan must be a Plan, got RoutingSpec(stream=Stream(segments=(Segment(kind='text', tokens=3, shot=None,"
        "... (RoutingSpec). Hint: sparsemoc.plan(spec, stream).",
    ),
    "pool of packed keys": (
        lambda c: c.pool(k=c.PK), moc.ShapeError, "pool: `k` must have rank 4, as the plan asks, got 3.",
    ),
    "pool of other lengths": (
        lambda c: c.pool(k=c.K[:, :4]), moc.ShapeError,
        "pool: `k` must have 15 tokens, got 4. The stream holds 15 tokens, and the queries are 15 of them from 0 on.",
    ),
    "a plan without a spec": (
        lambda c: moc.plan("spec"), moc.SpecError,
        "plan: spec must be a RoutingSpec, got 'spec' (str). Hint: sparsemoc.load_spec(path).",
    ),
    "a plan of no length": (
        lambda c: moc.plan(c.FREE), moc.SpecError,
        "plan: stream or tokens must be given, for the spec has no stream of its own.",
    ),
    "a plan of a stream in text": (
        lambda c: moc.plan(c.FREE, "stream"), moc.SpecError,
        "plan: stream must be a Stream, or a tuple of them for a packed batch, got 'stream' (str).",
    ),
    "a plan of other tokens": (
        lambda c: moc.plan(c.SPEC, tokens=16), moc.SpecError,
        "plan: tokens must equal the stream's 15 tokens, got 16. Hint: check the segments.",
    ),
    "a plan of no tokens": (
        lambda c: moc.plan(c.FREE, tokens=0), moc.SpecError, "plan: tokens must be a whole number >= 1, got 0 (int).",
    ),
    "a plan of no queries": (
        lambda c: moc.plan(c.SPEC, q_tokens=0), moc.SpecError,
        "plan: q_tokens must be a whole number >= 1, got 0 (int).",
    ),
    "a plan of too many queries": (
        lambda c: moc.plan(c.SPEC, q_tokens=16), moc.SpecError,
        "plan: q_tokens must be at most the stream's 15 tokens, got 16.",
    ),
    "a plan of queries outside": (
        lambda c: moc.plan(c.SPEC, q_start=10, q_tokens=6), moc.SpecError,
        "plan: q_start + q_tokens must be at most the stream's 15 tokens, got 10 + 6 = 16.",
    ),
    "a plan from a text": (
        lambda c: moc.plan(c.SPEC, q_start="1", q_tokens=6), moc.SpecError,
        "plan: q_start must be a whole number >= 0, got '1' (str).",
    ),
    "a packed plan of a part": (
        lambda c: moc.plan(c.FREE, (c.STREAM, c.STREAM), q_start=3), moc.SpecError,
        "plan: q_start and q_tokens must be left out for a packed batch, got 3 and None. "
        "Packed samples have as many queries as keys.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str, calls: Any, text_of: Any) -> None:
    call, kind, text = CASES[name]
    assert text_of(kind, lambda: call(calls)) == text

"""A backend is obeyed or refused; the two halves of a call are the call; centroids may come from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sparsemoc as moc
from sparsemoc.backends.registry import get_backend

STREAM = moc.Stream.multishot(shots=3, frames=2, height=3, width=3, caption=3, prompt=5)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=5), top_k=(1, 3, 2, 0), anchors=("caption", "chunk"))
LENGTHS = np.array([[5, 3, 18, 0, 18, 3, 9], [5, 3, 0, 3, 18, 1, 18]], np.int32)


def _arrays(dtype: Any = np.float32) -> list[NDArray[Any]]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal((2, STREAM.tokens, heads, 8)).astype(dtype) for heads in (4, 2, 2)]


def _packed() -> tuple[list[NDArray[Any]], tuple[moc.Stream, ...]]:
    streams = (STREAM, moc.Stream((moc.Segment("video", 11),)))
    rng = np.random.default_rng(6)
    tokens = STREAM.tokens + 11
    return [rng.standard_normal((tokens, heads, 8), np.float32) for heads in (4, 2, 2)], streams


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_route_and_attend_are_attention(backend: str, axes: str, training: bool) -> None:
    q, k, v = (x if axes == "bshd" else x.swapaxes(1, 2) for x in _arrays())
    spec = replace(SPEC, dropout=moc.RouteDropout(off=0.5, into=1.0))
    common: dict[str, Any] = {"axes": axes, "backend": backend, "deterministic": True}
    routing: dict[str, Any] = {"key_lengths": LENGTHS, "training": training, "seed": 5 if training else None}
    whole = moc.attention(q, k, v, spec, **common, **routing, return_lse=True, return_layout=True)
    layout = moc.route(q, k, spec, **common, **routing)
    out, lse = moc.attend(q, k, v, layout, **common, return_lse=True)
    assert np.array_equal(layout.selected, whole[2].selected)
    assert np.array_equal(out, whole[0])
    assert np.array_equal(lse, whole[1])


def test_route_takes_centroids(backend: str) -> None:
    q, k, _ = _arrays()
    centroids = moc.pool(k, moc.plan(SPEC), key_lengths=LENGTHS, backend=backend)
    assert centroids.shape == (2, 2, moc.plan(SPEC).chunks, 8)
    wanted = moc.route(q, k, SPEC, key_lengths=LENGTHS, backend=backend)
    got = moc.route(q, None, SPEC, centroids=centroids, key_lengths=LENGTHS, backend=backend)
    assert np.array_equal(got.selected, wanted.selected)


def test_route_takes_packed_centroids(backend: str) -> None:
    (q, k, _), streams = _packed()
    spec = replace(SPEC, stream=None, top_k=2)
    centroids = moc.pool(k, moc.plan(spec, streams), backend=backend)
    wanted = moc.route(q, k, spec, stream=streams, backend=backend)
    got = moc.route(q, None, spec, stream=streams, centroids=centroids, backend=backend)
    assert np.array_equal(got.selected, wanted.selected)


def test_a_layout_serves_another_layer(backend: str) -> None:
    """The layout of one layer's q and k may be used with another's."""
    q, k, v = _arrays()
    layout = moc.route(q, k, SPEC, backend=backend)
    out = moc.attend(q[::-1], k[::-1], v[::-1], layout, backend=backend)
    checked = moc.attend(q[::-1], k[::-1], v[::-1], layout, backend=backend, options=moc.Options(checked=True))
    assert np.array_equal(out, checked)


def test_the_stream_may_be_left_out(backend: str) -> None:
    q, k, v = _arrays()
    bare = moc.RoutingSpec(chunks=moc.Chunks(size=5), top_k=2)
    stream = moc.Stream((moc.Segment("video", STREAM.tokens),))
    without = moc.attention(q, k, v, bare, backend=backend)
    assert np.array_equal(without, moc.attention(q, k, v, bare, stream=stream, backend=backend))


def test_a_name_and_its_object_are_the_same(backend: str) -> None:
    q, k, v = _arrays()
    by_name = moc.attention(q, k, v, SPEC, backend=backend)
    assert np.array_equal(by_name, moc.attention(q, k, v, SPEC, backend=get_backend(backend)))


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    q, k, v = _arrays()
    with pytest.raises(moc.UnsupportedError, match='Did you mean "numba"'):
        moc.attention(q, k, v, SPEC, backend="numbra")


def test_a_named_backend_refuses_and_is_not_replaced(backend: str) -> None:
    q, k, v = _arrays()
    options = moc.Options(anchors="a provider nobody has")
    with pytest.raises(moc.UnsupportedError, match=backend):
        moc.attention(q, k, v, SPEC, backend=backend, options=options)


def test_auto_lists_every_reason() -> None:
    q, k, v = _arrays()
    with pytest.raises(moc.UnsupportedError) as caught:
        moc.attention(q, k, v, SPEC, options=moc.Options(anchors="a provider nobody has"))
    for name in moc.available_backends():
        assert name in str(caught.value)


def test_auto_gives_what_a_backend_gives() -> None:
    q, k, v = _arrays()
    out = moc.attention(q, k, v, SPEC)
    present = [get_backend(name) for name, absent in moc.available_backends().items() if not absent]
    takes = [one for one in present if "numpy" in one.capabilities.frameworks]
    named = [moc.attention(q, k, v, SPEC, backend=one) for one in takes]
    assert any(np.array_equal(out, other) for other in named)


def test_the_seed_may_be_an_array(backend: str) -> None:
    q, k, _ = _arrays()
    spec = replace(SPEC, dropout=moc.RouteDropout(off=0.9, into=2.0))
    common: dict[str, Any] = {"training": True, "backend": backend}
    routes = [moc.route(q, k, spec, seed=seed, **common).selected for seed in (7, np.int64(7), np.array(7), 7 + 2**64)]
    assert all(np.array_equal(routes[0], other) for other in routes[1:])
    assert not np.array_equal(routes[0], moc.route(q, k, spec, seed=8, **common).selected)
    with pytest.raises(moc.SpecError, match="seed"):
        moc.route(q, k, spec, **common)

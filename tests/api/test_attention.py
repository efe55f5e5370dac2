"""The public functions agree with each other, whichever way the same problem is put to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc

# Prompt 4, caption 3, video 16, caption 3, video 16: 42 tokens.
STREAM = moc.Stream.multishot(shots=2, frames=4, height=2, width=2, caption=3, prompt=4)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=6), top_k=2, anchors=("caption", "chunk"))
FREE = replace(SPEC, stream=None)
DROPOUT = replace(SPEC, top_k=4, dropout=moc.RouteDropout(off=1.0, into=2.0))
LENGTHS = np.array([[4, 3, 16, 3, 16], [2, 3, 9, 0, 16]], np.int32)


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


Q, K, V = draw(2, 42, 4, 8), draw(2, 42, 2, 8, seed=1), draw(2, 42, 2, 5, seed=2)
D_OUT, D_LSE = draw(2, 42, 4, 5, seed=3), draw(2, 4, 42, seed=4)


def close(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def whole(backend: str, **options: Any) -> tuple[Any, Any, moc.Layout]:
    out, lse, layout = moc.attention(Q, K, V, SPEC, backend=backend, return_lse=True, return_layout=True, **options)
    return out, lse, layout


def test_what_is_returned(backend: str) -> None:
    out, lse, layout = whole(backend)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == ((2, 42, 4, 5), np.float32, (2, 4, 42), np.float32)
    assert layout.selected.shape == (2, 4, 42, 2)
    layout.validate()
    np.testing.assert_array_equal(moc.attention(Q, K, V, SPEC, backend=backend), out)
    both = moc.attention(Q, K, V, SPEC, backend=backend, return_lse=True)
    assert isinstance(both, tuple)
    np.testing.assert_array_equal(both[0], out)
    np.testing.assert_array_equal(both[1], lse)
    both = moc.attention(Q, K, V, SPEC, backend=backend, return_layout=True)
    np.testing.assert_array_equal(both[0], out)
    np.testing.assert_array_equal(both[1].selected, layout.selected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes(backend: str, dtype: Any) -> None:
    q, k, v = (x.astype(dtype) for x in (Q, K, V))
    out, lse = moc.attention(q, k, v, SPEC, backend=backend, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert moc.pool(k, moc.plan(SPEC), backend=backend).dtype == np.float32
    grads = moc.attention_grads(q, k, v, SPEC, D_OUT.astype(dtype), backend=backend)
    assert [grad.dtype for grad in grads] == [dtype] * 3
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize("unit", ["token", moc.Block(4)])
def test_decoding_is_a_slice_of_the_whole(backend: str, unit: Any) -> None:
    # Blocks are counted from the chunk's start, so slices at chunk bounds cut none.
    spec = replace(SPEC, unit=unit)
    layout = moc.route(Q, K, spec, backend=backend)
    out, lse = moc.attention(Q, K, V, spec, backend=backend, return_lse=True)
    starts = layout.plan.samples[0].chunk_bounds
    for lo, hi in ((0, 42), (int(starts[3]), int(starts[7])), (int(starts[-2]), 42)):
        part: dict[str, Any] = {
            "backend": backend,
            "q_start": None if hi == 42 else lo,
        }  # by default the queries are the last ones
        found, found_lse, routed = moc.attention(Q[:, lo:hi], K, V, spec, return_lse=True, return_layout=True, **part)
        np.testing.assert_array_equal(routed.selected, layout.selected[:, :, lo:hi])
        close(found, out[:, lo:hi])
        close(found_lse, lse[:, :, lo:hi])
        assert (routed.plan.q_start, routed.plan.q_tokens) == (lo, hi - lo)


def test_one_query_at_a_time(backend: str) -> None:
    out = moc.attention(Q, K, V, SPEC, key_lengths=LENGTHS, backend=backend)
    for i in (0, 5, 22, 41):
        step = moc.attention(Q[:, i : i + 1], K, V, SPEC, key_lengths=LENGTHS, q_start=i, backend=backend)
        close(step, out[:, i : i + 1])


@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_packed_samples_are_as_one_by_one(backend: str, axes: str) -> None:
    streams = (STREAM, moc.Stream((moc.Segment("video", 13),)), moc.Stream((moc.Segment("text", 1),)))
    tokens = [stream.tokens for stream in streams]
    q, k, v, d_out = (draw(sum(tokens), h, d, seed=5 + d) for h, d in ((4, 8), (2, 8), (2, 5), (4, 5)))
    d_lse = draw(4, sum(tokens))
    lengths = np.array([[4, 3, 16, 3, 10], [11, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.int32)

    def turned(x: Any) -> Any:
        return x.swapaxes(0, 1) if axes == "bhsd" else x

    options: dict[str, Any] = {"stream": streams, "key_lengths": lengths, "axes": axes, "backend": backend}
    arrays = (turned(q), turned(k), turned(v))
    out, lse, layout = moc.attention(*arrays, FREE, return_lse=True, return_layout=True, **options)
    grads = moc.attention_grads(*arrays, FREE, turned(d_out), d_lse=d_lse, **options)
    assert turned(out).shape == (sum(tokens), 4, 5)
    assert lse.shape == (4, sum(tokens))
    assert layout.selected.shape[0] == 1
    again, again_lse = moc.attend(*arrays, layout, axes=axes, backend=backend, return_lse=True)
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(again_lse, lse)
    end = 0
    for stream, length in zip(streams, lengths, strict=True):
        own = slice(end, end := end + stream.tokens)
        single: dict[str, Any] = {
            "stream": stream, "key_lengths": length[None, : len(stream.segments)], "backend": backend,
        }  # fmt: skip
        expected, expected_lse, one = moc.attention(
            q[None, own], k[None, own], v[None, own], FREE, return_lse=True, return_layout=True, **single
        )
        slots = one.selected.shape[3]
        np.testing.assert_array_equal(layout.selected[:, :, own, :slots], one.selected)
        assert (layout.selected[:, :, own, slots:] == -1).all()
        close(turned(out)[own], expected[0])
        close(lse[:, own], expected_lse[0])
        expected_grads = moc.attention_grads(
            q[None, own], k[None, own], v[None, own], FREE, d_out[None, own], d_lse=d_lse[None, :, own], **single
        )
        for found, grad in zip(grads, expected_grads, strict=True):
            close(turned(found)[own], grad[0])


def test_packed_streams_may_be_left_out(backend: str) -> None:
    q, k, v = Q[0], K[0], V[0]
    np.testing.assert_array_equal(
        moc.attention(q, k, v, SPEC, backend=backend), moc.attention(q, k, v, FREE, stream=STREAM, backend=backend)
    )
    close(moc.attention(q, k, v, SPEC, backend=backend), whole(backend)[0][0])
    one = moc.Stream((moc.Segment("video", 42),))
    np.testing.assert_array_equal(
        moc.attention(q, k, v, FREE, backend=backend), moc.attention(q, k, v, FREE, stream=(one,), backend=backend)
    )


def test_without_a_stream_the_keys_are_one_video_segment(backend: str) -> None:
    one = moc.Stream((moc.Segment("video", 42),))
    out, layout = moc.attention(Q, K, V, FREE, backend=backend, return_layout=True)
    assert layout.plan.streams == (one,)
    np.testing.assert_array_equal(out, moc.attention(Q, K, V, FREE, stream=one, backend=backend))


def test_the_two_orders_of_axes(backend: str) -> None:
    out, lse, layout = whole(backend, key_lengths=LENGTHS)
    q, k, v = (x.swapaxes(1, 2) for x in (Q, K, V))
    options: dict[str, Any] = {"key_lengths": LENGTHS, "axes": "bhsd", "backend": backend}
    found, found_lse, routed = moc.attention(q, k, v, SPEC, return_lse=True, return_layout=True, **options)
    assert found.shape == (2, 4, 42, 5)
    close(found.swapaxes(1, 2), out)
    close(found_lse, lse)
    np.testing.assert_array_equal(routed.selected, layout.selected)
    close(moc.attend(q, k, v, layout, axes="bhsd", backend=backend).swapaxes(1, 2), out)
    grads = moc.attention_grads(Q, K, V, SPEC, D_OUT, d_lse=D_LSE, key_lengths=LENGTHS, backend=backend)
    others = moc.attention_grads(q, k, v, SPEC, D_OUT.swapaxes(1, 2), d_lse=D_LSE, **options)
    for grad, other in zip(grads, others, strict=True):
        close(other.swapaxes(1, 2), grad)


def test_query_heads_share_key_heads_in_groups(backend: str) -> None:
    out, lse, layout = whole(backend)
    many = moc.attention(
        Q, K.repeat(2, axis=2), V.repeat(2, axis=2), SPEC, backend=backend, return_lse=True, return_layout=True
    )
    np.testing.assert_array_equal(many[2].selected, layout.selected)
    close(many[0], out)
    close(many[1], lse)
    dq, dk, dv = moc.attention_grads(Q, K, V, SPEC, D_OUT, backend=backend)
    grads = moc.attention_grads(Q, K.repeat(2, axis=2), V.repeat(2, axis=2), SPEC, D_OUT, backend=backend)
    close(grads[0], dq)
    close(grads[1].reshape(2, 42, 2, 2, 8).sum(3), dk)
    close(grads[2].reshape(2, 42, 2, 2, 5).sum(3), dv)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, top_k=(0, 3, 1, 9)), replace(SPEC, unit=moc.Block(4))])
def test_the_two_halves_make_the_whole(backend: str, spec: moc.RoutingSpec) -> None:
    options: dict[str, Any] = {"key_lengths": LENGTHS, "backend": backend}
    out, lse = moc.attention(Q, K, V, spec, scale=0.3, return_lse=True, **options)
    layout = moc.route(Q, K, spec, **options)
    found, found_lse = moc.attend(Q, K, V, layout, scale=0.3, backend=backend, return_lse=True)
    np.testing.assert_array_equal(found, out)
    np.testing.assert_array_equal(found_lse, lse)
    assert not isinstance(moc.attend(Q, K, V, layout, backend=backend), tuple)
    centroids = moc.pool(K, moc.plan(spec), **options)
    assert centroids.shape == (2, 2, layout.plan.chunks, 8)
    elsewhere = moc.route(Q, None, spec, centroids=centroids, **options)
    np.testing.assert_array_equal(elsewhere.selected, layout.selected)


def test_centroids_are_means_of_valid_keys_in_either_order_of_axes(backend: str) -> None:
    plan = moc.plan(SPEC)
    centroids = moc.pool(K, plan, key_lengths=LENGTHS, backend=backend)
    for b, sample in enumerate(plan.batch(2, LENGTHS)):
        for c, (lo, hi) in enumerate(zip(sample.plan.chunk_bounds, sample.plan.chunk_stop, strict=False)):
            expected = K[b, lo:hi].astype(np.float64).mean(0) if hi > lo else np.zeros((2, 8))
            np.testing.assert_allclose(centroids[b, :, c], expected, rtol=1e-6, atol=1e-6)
    turned = moc.pool(K.swapaxes(1, 2), plan, key_lengths=LENGTHS, axes="bhsd", backend=backend)
    np.testing.assert_array_equal(turned, centroids)
    packed = moc.pool(K.reshape(84, 2, 8), moc.plan(FREE, (STREAM, STREAM)), key_lengths=LENGTHS, backend=backend)
    np.testing.assert_array_equal(packed[0], np.concatenate(list(centroids), axis=1))


def routes(backend: str, seed: Any, **options: Any) -> Any:
    return moc.route(Q, K, DROPOUT, training=True, seed=seed, backend=backend, **options).selected


def test_seeds_of_every_kind(backend: str) -> None:
    first = routes(backend, 7)
    for same in (np.int64(7), np.uint8(7), np.array(7), np.array(7, np.uint64), 7 + 2**64, 7 - 2**64):
        np.testing.assert_array_equal(routes(backend, same), first)
    assert (routes(backend, 8) != first).any()
    assert (routes(backend, 7 + 2**32) != first).any()


def test_dropout_counts_by_global_batch_rows_and_heads(backend: str) -> None:
    first = routes(backend, 7)
    options: dict[str, Any] = {"training": True, "seed": 7, "backend": backend}
    row = moc.route(Q[1:], K[1:], DROPOUT, batch_start=1, **options).selected
    np.testing.assert_array_equal(row, first[1:])
    heads = moc.route(Q[:, :, 2:], K[:, :, 1:], DROPOUT, head_start=2, **options).selected
    np.testing.assert_array_equal(heads, first[:, 2:])
    assert (routes(backend, 7, batch_start=1) != first).any()


def test_dropout_is_for_training_alone(backend: str) -> None:
    plain = moc.route(Q, K, replace(DROPOUT, dropout=None), backend=backend).selected
    idle = moc.route(Q, K, DROPOUT, seed=7, backend=backend).selected
    np.testing.assert_array_equal(idle[..., :4], plain)
    assert (idle[..., 4:] == -1).all()
    np.testing.assert_array_equal(
        moc.route(Q, K, SPEC, training=True, backend=backend).selected, whole(backend)[2].selected
    )


def test_gradients_are_those_of_the_dropped_routes(backend: str) -> None:
    options: dict[str, Any] = {"training": True, "backend": backend}
    first, second = (moc.attention_grads(Q, K, V, DROPOUT, D_OUT, seed=seed, **options) for seed in (7, 8))
    again = moc.attention_grads(Q, K, V, DROPOUT, D_OUT, seed=np.array(7), **options)
    for one, other, same in zip(first, second, again, strict=True):
        close(same, one)
        assert not np.allclose(one, other)


def test_no_gradient_of_lse_is_a_zero_one(backend: str) -> None:
    without = moc.attention_grads(Q, K, V, SPEC, D_OUT, backend=backend)
    zero = moc.attention_grads(Q, K, V, SPEC, D_OUT, d_lse=np.zeros_like(D_LSE), backend=backend)
    for one, other in zip(without, zero, strict=True):
        close(other, one)


def test_a_nan_is_never_hidden(backend: str) -> None:
    k = K.copy()
    k[1, 10, 0, 3] = np.nan
    layout = moc.route(Q, k, SPEC, backend=backend)
    chunk = int(np.searchsorted(layout.plan.samples[0].chunk_bounds, 10, side="right")) - 1
    plan = layout.plan.samples[0]
    routed = [i for i in range(42) if chunk in plan.candidates(i)]
    assert routed
    for i in routed:  # key head 0 serves the query heads 0 and 1
        assert all(chunk in layout.selected[1, h, i] for h in (0, 1))
    with np.errstate(all="ignore"):
        out = moc.attention(Q, k, V, SPEC, backend=backend)
    assert np.isnan(out[1, routed][:, :2]).all()
    assert np.isfinite(out[0]).all()
    assert np.isfinite(out[1, :, 2:]).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_layout_serves_other_values(backend: str, deterministic: bool) -> None:
    layout = moc.route(Q, K, SPEC, backend=backend)
    other = moc.attend(Q, K, 2 * V, layout, backend=backend, deterministic=deterministic)
    close(other, 2 * moc.attend(Q, K, V, layout, backend=backend, deterministic=deterministic))

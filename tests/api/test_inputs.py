"""Inputs lie in memory as they like, are never written, and share no memory with what is returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsemoc as moc

STREAM = moc.Stream.multishot(shots=2, frames=4, height=2, width=2, caption=3, prompt=4)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=6), top_k=2, anchors=("caption", "chunk"))
LENGTHS = np.array([[4, 3, 16, 3, 16], [2, 3, 9, 0, 16]], np.int32)
SHAPES = ((2, 42, 4, 8), (2, 42, 2, 8), (2, 42, 2, 5), (2, 42, 4, 5), (2, 4, 42))
Q, K, V, D_OUT, D_LSE = (np.random.default_rng(n).standard_normal(s).astype(np.float32) for n, s in enumerate(SHAPES))


def close(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def ways_to_lie(x: Any) -> list[Any]:
    """The same values with other strides: reversed, transposed, sliced out of more, and Fortran order."""
    wide = np.full((*x.shape[:-1], 3 * x.shape[-1]), np.nan, x.dtype)
    wide[..., 1::3] = x
    reverse = np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    turned = np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)
    return [reverse, turned, wide[..., 1::3], np.asfortranarray(x)]


@pytest.mark.parametrize("way", range(4))
def test_inputs_of_any_strides(backend: str, way: int) -> None:
    out, lse = moc.attention(Q, K, V, SPEC, backend=backend, return_lse=True)
    layout = moc.route(Q, K, SPEC, backend=backend)
    q, k, v, d_out, d_lse = (ways_to_lie(x)[way] for x in (Q, K, V, D_OUT, D_LSE[..., None]))
    found = moc.attention(q, k, v, SPEC, backend=backend, return_lse=True, return_layout=True)
    close(found[0], out)
    close(found[1], lse)
    np.testing.assert_array_equal(found[2].selected, layout.selected)
    expected = moc.attention_grads(Q, K, V, SPEC, D_OUT, d_lse=D_LSE, backend=backend)
    grads = moc.attention_grads(q, k, v, SPEC, d_out, d_lse=d_lse[..., 0], backend=backend)
    for grad, other in zip(grads, expected, strict=True):
        close(grad, other)


def test_heads_that_share_memory(backend: str) -> None:
    q, k, v = (np.broadcast_to(x[:, :, :1], x.shape) for x in (Q, K, V))
    expected = moc.attention(q.copy(), k.copy(), v.copy(), SPEC, backend=backend)
    close(moc.attention(q, k, v, SPEC, backend=backend), expected)


def test_inputs_are_never_written_and_outputs_alias_none(backend: str) -> None:
    given = [x.copy() for x in (Q, K, V, D_OUT, D_LSE, LENGTHS)]
    for x in given:
        x.flags.writeable = False
    q, k, v, d_out, d_lse, lengths = given
    layout = moc.route(q, k, SPEC, key_lengths=lengths, backend=backend)
    layout.selected.flags.writeable = False
    results = [layout.selected, moc.pool(k, layout.plan, key_lengths=lengths, backend=backend)]
    results += moc.attend(q, k, v, layout, backend=backend, return_lse=True)
    results += moc.attention_grads(q, k, v, SPEC, d_out, d_lse=d_lse, key_lengths=lengths, backend=backend)
    for x, original in zip(given, (Q, K, V, D_OUT, D_LSE, LENGTHS), strict=True):
        np.testing.assert_array_equal(x, original)
        assert not any(np.shares_memory(x, result) for result in results)

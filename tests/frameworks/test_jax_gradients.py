"""Gradients in JAX: of out and lse, in reverse mode, once; under jit, vmap, scan and remat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Telling, Traced

jax = pytest.importorskip("jax", reason="JAX arrays need JAX")
jnp = jax.numpy

DTYPES = ("float16", "bfloat16", "float32")


def loss_of(backend: Any, spec: Any, d_out: Any, d_lse: Any = None, **options: Any) -> Callable[..., Any]:
    """Return a loss of q, k, v whose gradients of out and lse are given."""

    def loss(q: Any, k: Any, v: Any) -> Any:
        out, lse = moc.attention(q, k, v, spec, return_lse=True, backend=backend, **options)
        total = (out * d_out).astype(jnp.float32).sum()
        return total if d_lse is None else total + jnp.where(jnp.isneginf(lse), 0, lse * d_lse).sum()

    return loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("jit", [False, True])
def test_the_gradients_are_those_of_attention_grads(
    backend: str, traced: Traced, dtype: str, jit: bool, each_way: str
) -> None:
    arrays = traced.numpy(dtype)
    given = traced.given(arrays)
    options: dict[str, Any] = {"key_lengths": traced.LENGTHS}
    run = jax.value_and_grad(loss_of(backend, traced.SPEC, *given[3:], **options), (0, 1, 2))
    _, grads = (jax.jit(run) if jit else run)(*given[:3])
    q, k, v, d_out, d_lse = arrays
    expected = moc.attention_grads(q, k, v, traced.SPEC, d_out, d_lse=d_lse, backend=backend, **options)
    traced.same(grads, expected)


def test_the_gradients_are_those_of_a_dense_softmax(backend: str, traced: Traced) -> None:
    """An independent derivative: the layout's mask, a dense masked softmax, and JAX's own rules."""
    q, k, v, d_out, d_lse = traced.given(traced.numpy())
    mask = moc.route(q, k, traced.SPEC, backend=backend).dense_mask()

    def dense(q: Any, k: Any, v: Any) -> Any:
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        logits = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5, -jnp.inf)
        lse = jax.nn.logsumexp(logits, axis=-1)
        out = jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(logits - lse[..., None]), v)
        return (out * d_out).sum() + (lse * d_lse).sum()

    found = jax.jit(jax.value_and_grad(loss_of(backend, traced.SPEC, d_out, d_lse), (0, 1, 2)))(q, k, v)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(jax.value_and_grad(dense, (0, 1, 2))(q, k, v)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_lse_alone_and_of_a_layout_held_fast(backend: str, traced: Traced) -> None:
    q, k, v, d_out, d_lse = traced.given(traced.numpy())
    layout = moc.route(q, k, traced.SPEC, backend=backend)

    def lse_of(q: Any, k: Any, v: Any) -> Any:
        return (moc.attend(q, k, v, layout, return_lse=True, backend=backend)[1] * d_lse).sum()

    found = jax.jit(jax.grad(lse_of, (0, 1, 2)))(q, k, v)
    nothing = jnp.zeros_like(d_out)
    traced.same(found, moc.attention_grads(q, k, v, traced.SPEC, nothing, d_lse=d_lse, backend=backend))


def test_grad_of_a_layout_argument(backend: str, traced: Traced) -> None:
    """A layout is a pytree of integers: nothing flows through it."""
    q, k, v, d_out, _ = traced.given(traced.numpy())
    layout = moc.route(q, k, traced.SPEC, key_lengths=traced.LENGTHS, backend=backend)

    def loss(layout: Any, q: Any) -> Any:
        return (moc.attend(q, k, v, layout, backend=backend) * d_out).sum()

    of_layout, dq = jax.grad(loss, (0, 1), allow_int=True)(layout, q)
    assert [leaf.dtype for leaf in jax.tree.leaves(of_layout)] == [jax.dtypes.float0] * 2
    options: dict[str, Any] = {"key_lengths": traced.LENGTHS, "backend": backend}
    traced.same(dq, moc.attention_grads(q, k, v, traced.SPEC, d_out, **options)[0])


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, None)])
def test_vmap_of_grad_and_grad_of_vmap_are_loops(backend: str, traced: Traced, axes: Any, each_way: str) -> None:
    q, k, v, d_out, d_lse = traced.given(traced.numpy())
    loss = loss_of(backend, traced.SPEC, d_out, d_lse, key_lengths=traced.LENGTHS)
    many = [x if axis is None else jnp.stack([x, -x]) for x, axis in zip((q, k, v), axes, strict=True)]
    each = [
        jax.grad(loss, (0, 1, 2))(*(x if axis is None else x[row] for x, axis in zip(many, axes, strict=True)))
        for row in range(2)
    ]
    found = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)), axes))(*many)
    traced.same(found, [jnp.stack(pair) for pair in zip(*each, strict=True)])
    sums = jax.jit(jax.grad(lambda *given: jax.vmap(loss, axes)(*given).sum(), (0, 1, 2)))(*many)
    for one, pair, axis in zip(sums, zip(*each, strict=True), axes, strict=True):
        np.testing.assert_allclose(one, sum(pair) if axis is None else jnp.stack(pair), rtol=1e-5, atol=1e-5)


def test_scan_and_remat(backend: str, traced: Traced) -> None:
    """Layers under scan, recomputed in the backward: the gradients of the same layers in a Python loop."""
    x, scales = traced.given((traced.draw(2, 42, 2, 8), traced.draw(2, 3)))

    def layer(x: Any, w: Any) -> Any:
        return moc.attention(x * w[0], x * w[1], x * w[2], traced.SPEC, backend=backend)

    def scanned(x: Any, scales: Any) -> Any:
        return (jax.lax.scan(lambda x, w: (jax.checkpoint(layer)(x, w), None), x, scales)[0] ** 2).sum()

    def looped(x: Any, scales: Any) -> Any:
        for w in scales:
            x = layer(x, w)
        return (x**2).sum()

    found, expected = jax.jit(jax.grad(scanned, (0, 1)))(x, scales), jax.grad(looped, (0, 1))(x, scales)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_backend_is_asked_for_its_backward(telling: Telling, traced: Traced) -> None:
    q, k, v, d_out, _ = traced.given(traced.numpy())
    grad = jax.grad(loss_of(telling, traced.SPEC, d_out))
    jax.block_until_ready(grad(q, k, v))
    assert telling.given["attend"][0].backward
    assert telling.given["attend_backward"][0].backward
    telling.capabilities = replace(telling.capabilities, backward=False)
    moc.attention(q, k, v, traced.SPEC, backend=telling).block_until_ready()
    with pytest.raises(moc.UnsupportedError) as raised:
        grad(q, k, v)
    assert str(raised.value) == (
        'attention: backend "telling" has no backward (float32 on cpu (numpy), heads 4/2, head_dim 8/5, backward). '
        'Hint: backend="auto" chooses one that can, if there is one.'
    )


@pytest.mark.parametrize("of", ["grad of grad", "attention_grads"])
def test_a_second_derivative_is_an_error(backend: str, traced: Traced, of: str) -> None:
    q, k, v, d_out, _ = traced.given(traced.numpy())

    def first(q: Any) -> Any:
        if of == "attention_grads":
            return moc.attention_grads(q, k, v, traced.SPEC, d_out, backend=backend)[0]
        return jax.grad(loss_of(backend, traced.SPEC, d_out))(q, k, v)

    with pytest.raises(moc.UnsupportedError) as raised:
        jax.grad(lambda q: first(q).sum())(q)
    assert str(raised.value) == (
        "attention: gradients must be taken once, got a second derivative: there is none of the gradients. "
        "Hint: take them of jax.lax.stop_gradient of q, k and v."
    )
    held = jax.grad(lambda q: (q * first(jax.lax.stop_gradient(q))).sum())(q)
    traced.same(held, first(q))


def test_forward_mode_is_an_error(backend: str, traced: Traced) -> None:
    q, k, v, d_out, _ = traced.given(traced.numpy())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: loss_of(backend, traced.SPEC, d_out)(q, k, v), (q,), (q,))

"""The attention_fn for flax: nnx and linen modules whose forward is the oracle's, with gradients, compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle

jax = pytest.importorskip("jax", reason="the adapter serves JAX models")
flax = pytest.importorskip("flax", reason="the adapter serves flax modules")

from flax import linen, nnx  # noqa: E402  # they need flax

from sparsemoc.jax import flax_attention_fn  # noqa: E402  # it needs JAX

jnp = jax.numpy

# Prompt 4, video 16, video 16: 36 tokens.
STREAM = moc.Stream.multishot(shots=2, frames=4, height=2, width=2, prompt=4)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=4), top_k=2, anchors=("text", "chunk"))
TOKEN = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=2, anchors=("chunk",), causal="token")
DROPOUT = replace(SPEC, top_k=4, dropout=moc.RouteDropout(off=1.0))


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape), jnp.float32)


class Nnx:
    """nnx.MultiHeadAttention of 4 heads, 2 of them for keys, and its parts."""

    def __init__(self, attend: Any, **options: Any) -> None:
        given = {"num_kv_heads": 2, "decode": False, "rngs": nnx.Rngs(0), "attention_fn": attend}
        self.layer = nnx.MultiHeadAttention(4, 32, **{**given, **options})

    def __call__(self, x: Any, **options: Any) -> Any:
        return self.layer(x, **options)

    def qkv(self, x: Any) -> Any:
        return self.layer.query(x), self.layer.key(x), self.layer.value(x)

    def out(self, attended: Any) -> Any:
        return self.layer.out(attended)


class Linen:
    """linen.MultiHeadDotProductAttention of 4 heads, and its parts."""

    def __init__(self, attend: Any, **options: Any) -> None:
        self.layer = linen.MultiHeadDotProductAttention(num_heads=4, attention_fn=attend, **options)
        plain = linen.MultiHeadDotProductAttention(num_heads=4)
        self.variables = plain.init(jax.random.key(0), draw(2, 36, 32), draw(2, 36, 32))

    def __call__(self, x: Any, **options: Any) -> Any:
        return self.layer.apply(self.variables, x, x, **options)

    def qkv(self, x: Any) -> Any:
        weights = self.variables["params"]
        parts = ("query", "key", "value")
        return tuple(jnp.einsum("btc,chd->bthd", x, weights[n]["kernel"]) + weights[n]["bias"] for n in parts)

    def out(self, attended: Any) -> Any:
        weights = self.variables["params"]["out"]
        return jnp.einsum("bthd,hdc->btc", attended, weights["kernel"]) + weights["bias"]


MODULES = [Nnx, Linen]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("padded", [False, True])
def test_the_forward_is_the_oracles(module: Any, padded: bool) -> None:
    lengths = ((4, 16, 16), (3, 16, 9)) if padded else None
    layer, x = module(flax_attention_fn(SPEC, key_lengths=lengths)), draw(2, 36, 32)
    found = jax.jit(lambda x: layer(x))(x)
    q, k, v = (np.asarray(part) for part in layer.qkv(x))
    expected = layer.out(oracle.run(q, k, v, SPEC, key_lengths=lengths).out.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", MODULES)
def test_a_stream_at_hand_and_a_causal_spec(module: Any) -> None:
    stream = moc.Stream((moc.Segment("video", 36),))
    layer, x = module(flax_attention_fn(TOKEN, stream)), draw(2, 36, 32)
    q, k, v = (np.asarray(part) for part in layer.qkv(x))
    expected = layer.out(oracle.run(q, k, v, TOKEN).out.astype(np.float32))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    if module is Nnx:
        np.testing.assert_array_equal(layer(x, is_causal=True), layer(x))


def test_gradients_reach_the_weights_of_nnx() -> None:
    """As a dense attention_fn with the same mask gives them."""
    x, target = draw(2, 36, 32), draw(2, 36, 32).T.reshape(2, 36, 32)
    layer = Nnx(flax_attention_fn(SPEC)).layer
    mask = moc.route(layer.query(x), layer.key(x), SPEC).dense_mask()

    def dense(query: Any, key: Any, value: Any, **_: Any) -> Any:
        key, value = (jnp.repeat(part, 2, axis=2) for part in (key, value))
        return jax.nn.dot_product_attention(query, key, value, mask=jnp.asarray(mask))

    def grads(attend: Any) -> Any:
        layer = Nnx(attend).layer
        return nnx.jit(nnx.grad(lambda layer: ((layer(x) - target) ** 2).sum()))(layer)

    found, expected = jax.tree.leaves(grads(flax_attention_fn(SPEC))), jax.tree.leaves(grads(dense))
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_weights_of_linen() -> None:
    layer, x = Linen(flax_attention_fn(SPEC)), draw(2, 36, 32)

    def loss(variables: Any) -> Any:
        return (layer.layer.apply(variables, x, x) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(layer.variables)
    step = 1e-3
    direction = jax.tree.map(lambda g: g / 100, grads)
    up, down = (jax.tree.map(lambda w, d, s=s: w + s * step * d, layer.variables, direction) for s in (1, -1))
    slope = sum((g * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose((loss(up) - loss(down)) / (2 * step), slope, rtol=0.02)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_any_number_of_batch_axes(lead: tuple[int, ...]) -> None:
    attend = flax_attention_fn(SPEC)
    q, k, v = draw(*lead, 36, 4, 8), draw(*lead, 36, 2, 8), draw(*lead, 36, 2, 6)
    found = attend(q, k, v)
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    flat = moc.attention(q, k, v, SPEC)
    np.testing.assert_array_equal(found, flat.reshape(*lead, 36, 4, 6))


def test_dtypes() -> None:
    q, k, v = draw(1, 36, 4, 8), draw(1, 36, 4, 8).astype(jnp.bfloat16), draw(1, 36, 4, 8).astype(jnp.bfloat16)
    assert flax_attention_fn(SPEC)(q, k, v).dtype == jnp.float32
    assert flax_attention_fn(SPEC)(q, k, v, dtype=jnp.float16, precision="highest").dtype == jnp.float16
    layer = Nnx(flax_attention_fn(SPEC), dtype=jnp.bfloat16)
    assert layer(draw(2, 36, 32)).dtype == jnp.bfloat16


def test_route_dropout() -> None:
    q, k, v = draw(1, 36, 4, 8), draw(1, 36, 4, 8), draw(1, 36, 4, 8)
    expected = [moc.attention(q, k, v, DROPOUT, training=True, seed=seed) for seed in (5, 6)]
    assert not np.array_equal(*expected)
    np.testing.assert_array_equal(flax_attention_fn(DROPOUT, training=True, seed=5)(q, k, v), expected[0])
    seeds = iter((5, 6))
    attend = flax_attention_fn(DROPOUT, training=True, seed=lambda: jnp.int32(next(seeds)))
    for one in expected:
        np.testing.assert_array_equal(attend(q, k, v), one)
    rngs = nnx.Rngs(dropout=0)
    layer = Nnx(flax_attention_fn(DROPOUT, training=True, seed=lambda: jax.random.bits(rngs.dropout())))
    assert not np.array_equal(layer(draw(2, 36, 32)), layer(draw(2, 36, 32)))
    resting = Nnx(flax_attention_fn(DROPOUT))
    np.testing.assert_array_equal(resting(draw(2, 36, 32)), resting(draw(2, 36, 32)))


NO_MASK = "padding is key_lengths=, what is causal is the spec's"

#: What is asked of the function; the exception; the text after "flax_attention_fn: ".
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "bias": (
        {"bias": np.zeros(1)}, moc.UnsupportedError,
        "bias must be None, got ndarray. Hint: routing has no place for one.",
    ),
    "mask": ({"mask": np.ones(1, bool)}, moc.UnsupportedError, f"mask must be None, got ndarray. Hint: {NO_MASK}."),
    "weights": (
        {"module": object()}, moc.UnsupportedError,
        "module must be None, got object. Hint: sow_weights=False; there is no matrix of weights to sow.",
    ),
    "products": (
        {"qk_attn_weights_einsum": np.einsum}, moc.UnsupportedError,
        f"qk_attn_weights_einsum must be None, got {type(np.einsum).__name__}. Hint: leave it out of the module.",
    ),
    "dropout": (
        {"dropout_rate": 0.1}, moc.UnsupportedError,
        "dropout_rate must be 0, got 0.1 (float): weights are never dropped. "
        "Hint: RouteDropout in the spec, with training=True and seed=.",
    ),
    "causal": (
        {"is_causal": True}, moc.SpecError,
        'is_causal=True asks for a spec with causal="token", got causal="none". '
        "Hint: leave is_causal out; the spec decides.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name: str) -> None:
    options, kind, text = REFUSED[name]
    q = draw(1, 36, 4, 8)
    with pytest.raises(moc.SparsemocError) as raised:
        flax_attention_fn(SPEC)(q, q, q, **options)
    assert type(raised.value) is kind
    assert str(raised.value) == f"flax_attention_fn: {text}"


def test_dropout_of_weights_that_is_not_applied_is_no_error() -> None:
    layer = Nnx(flax_attention_fn(SPEC), dropout_rate=0.5, deterministic=True)
    np.testing.assert_array_equal(layer(draw(2, 36, 32)), Nnx(flax_attention_fn(SPEC))(draw(2, 36, 32)))


def test_causal_with_unlike_lengths() -> None:
    with pytest.raises(moc.ShapeError, match=r"as many queries as keys, .* got 3 and 36"):
        flax_attention_fn(TOKEN)(draw(1, 3, 4, 8), draw(1, 36, 4, 8), draw(1, 36, 4, 8), is_causal=True)


@pytest.mark.parametrize("module", MODULES)
def test_a_mask_of_a_module_is_refused(module: Any) -> None:
    layer = module(flax_attention_fn(SPEC))
    with pytest.raises(moc.UnsupportedError, match="flax_attention_fn: mask must be None"):
        layer(draw(2, 36, 32), mask=jnp.ones((2, 1, 36, 36), bool))


def test_no_spec() -> None:
    with pytest.raises(moc.SpecError) as raised:
        flax_attention_fn(3)  # type: ignore[arg-type]
    text = "flax_attention_fn: spec must be a RoutingSpec, got 3 (int). Hint: sparsemoc.load_spec(path)."
    assert str(raised.value) == text

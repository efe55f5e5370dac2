"""JAX arrays of the wrong kind, and tracers where a constant is needed: the exception and its whole text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Telling, Traced

jax = pytest.importorskip("jax", reason="JAX arrays need JAX")
jnp = jax.numpy

CONSTANT = "where a constant is needed (with jax.jit: name it in static_argnames, or close over it)"
INT, FLOAT = f"a traced int32[] {CONSTANT}", f"a traced float32[] {CONSTANT}"


def attention(t: Traced, **options: Any) -> Any:
    arrays = {**dict(zip("qkv", t.given(t.numpy()), strict=False)), "spec": t.SPEC, "backend": "reference"}
    return moc.attention(**{**arrays, **options})


#: What is called with a traced 1; the exception; the text.
TRACED: dict[str, tuple[Callable[[Traced, Any], object], type[Exception], str]] = {
    "scale": (
        lambda t, x: attention(t, scale=x.astype(jnp.float32)), moc.SpecError,
        f"attention: scale must be a finite number, or None for head_dim ** -0.5, got {FLOAT}.",
    ),
    "q_start": (
        lambda t, x: attention(t, q_start=x), moc.SpecError,
        f"attention: q_start must be a whole number >= 0, got {INT}. It is the stream position of the first query.",
    ),
    "top_k": (
        lambda t, x: moc.RoutingSpec(top_k=x), moc.SpecError,
        f"RoutingSpec: top_k must be a whole number >= 0, got {INT}. "
        "Use one number, or a tuple with one per query head.",
    ),
    "size": (
        lambda t, x: moc.Chunks(size=x), moc.SpecError,
        f"Chunks: size must be a whole number >= 1, got {INT}. Use None for one chunk per segment.",
    ),
    "off": (
        lambda t, x: moc.RouteDropout(off=x), moc.SpecError,
        f"RouteDropout: off must be a finite number >= 0 and <= 1, got {INT}.",
    ),
    "training": (
        lambda t, x: attention(t, training=x), moc.SpecError, f"attention: training must be True or False, got {INT}.",
    ),
    "deterministic": (
        lambda t, x: attention(t, deterministic=x), moc.SpecError,
        f"attention: deterministic must be True, False or None, got {INT}.",
    ),
    "a fractional batch_start": (
        lambda t, x: attention(t, batch_start=x.astype(jnp.float32)), moc.SpecError,
        f"attention: batch_start must be a whole number >= 0, got {FLOAT}.",
    ),
    "lengths of NumPy arrays": (
        lambda t, x: moc.attention(*t.numpy()[:3], t.SPEC, key_lengths=x[None, None]), moc.ShapeError,
        f"attention: `key_lengths` must be an integer array, got a traced int32[1, 1] {CONSTANT}.",
    ),
    "seed of NumPy arrays": (
        lambda t, x: moc.attention(*t.numpy()[:3], t.DROPOUT, training=True, seed=x), moc.SpecError,
        f"attention: seed must be a whole number or a 0-d integer array, got {INT}. Hint: seed=0.",
    ),
    "a fractional seed": (
        lambda t, x: attention(t, seed=x.astype(jnp.float32)), moc.SpecError,
        "attention: seed must be a whole number or a 0-d integer array, got float32[]. Hint: seed=0.",
    ),
    "checked": (
        lambda t, x: moc.attend(
            *t.given(t.numpy()[:3]),
            moc.route(t.numpy()[0] * x, t.numpy()[1] * x, t.SPEC), options=moc.Options(checked=True),
        ), moc.UnsupportedError,
        "an array must hold data to be read, got a traced int32[2, 4, 42, 2]. "
        "Hint: read it outside of jax.jit, jax.grad and jax.vmap, and leave Options(checked=True) out inside.",
    ),
    "two libraries": (
        lambda t, x: attention(t, k=t.numpy()[1], v=t.given(t.numpy())[2] * x), moc.ShapeError,
        "attention: all arrays must come from one library, got `q` from jax, `k` from numpy, `v` from jax.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_value(name: str, traced: Traced) -> None:
    call, kind, text = TRACED[name]
    with pytest.raises(moc.SparsemocError) as raised:
        jax.jit(lambda x: call(traced, x))(jnp.int32(1))
    assert type(raised.value) is kind
    assert str(raised.value) == text


@pytest.mark.parametrize("name", ["scale", "q_start", "batch_start", "head_start"])
def test_a_concrete_array_is_a_constant(name: str, traced: Traced) -> None:
    number = jnp.float32(0.5) if name == "scale" else jnp.int32(0)
    traced.same(attention(traced, **{name: number}), attention(traced, **{name: number.item()}))


FLOATS = "must be float16, bfloat16, float32, float64, got "

#: A call; the exception; the text.
CASES: dict[str, tuple[Callable[[Traced], object], type[Exception], str]] = {
    "integers": (
        lambda t: attention(t, q=jnp.zeros((2, 42, 4, 8), jnp.int32)), moc.ShapeError,
        f"attention: `q` {FLOATS}int32. Hint: array.astype(jax.numpy.float32).",
    ),
    "float8": (
        lambda t: attention(t, q=jnp.zeros((2, 42, 4, 8), jnp.float8_e4m3fn)), moc.ShapeError,
        f"attention: `q` {FLOATS}float8_e4m3fn. Hint: array.astype(jax.numpy.float32).",
    ),
    "a shape alone": (
        lambda t: attention(t, q=jax.ShapeDtypeStruct((2,), jnp.float32)), moc.ShapeError,
        "attention: `q` must be a JAX array, got ShapeDtypeStruct(shape=(2,), dtype=float32) (ShapeDtypeStruct).",
    ),
    "dtypes": (
        lambda t: attention(t, v=t.given(t.numpy("bfloat16"))[2]), moc.ShapeError,
        "attention: all arrays must have one dtype, got `q` float32, `k` float32, `v` bfloat16.",
    ),
    "key_lengths of floats": (
        lambda t: attention(t, key_lengths=jnp.zeros((2, 5))), moc.ShapeError,
        "attention: `key_lengths` must be an integer array, got dtype float32. Hint: array.astype(jax.numpy.int32).",
    ),
    "key_lengths of another shape": (
        lambda t: attention(t, key_lengths=jnp.zeros((2, 4), jnp.int32)), moc.ShapeError,
        "attention: `key_lengths` must have shape (batch, segments) = (2, 5), got (2, 4). "
        "It holds the valid tokens of each segment.",
    ),
    "a key as a seed": (
        lambda t: attention(t, seed=jax.random.key(0)), moc.SpecError,
        "attention: seed must be a whole number or a 0-d integer array, got a PRNG key, key<fry>. "
        "Hint: seed=jax.random.bits(key).",
    ),
    "an old key as a seed": (
        lambda t: attention(t, seed=jax.random.PRNGKey(0)), moc.SpecError,
        "attention: seed must be a whole number or a 0-d integer array, got uint32[2]. Hint: seed=0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str, traced: Traced) -> None:
    call, kind, text = CASES[name]
    with pytest.raises(moc.SparsemocError) as raised:
        call(traced)
    assert type(raised.value) is kind
    assert str(raised.value) == text


def test_a_layout_that_is_traced_cannot_be_read(traced: Traced) -> None:
    q, k, *_ = traced.given(traced.numpy())
    for read in ("validate", "pairs", "density", "dense_mask", "report", "on_host"):
        with pytest.raises(moc.UnsupportedError, match="an array must hold data to be read, got a traced int32"):
            jax.jit(lambda q, read=read: getattr(moc.route(q, k, traced.SPEC), read)())(q)


def test_an_error_of_a_backend_reaches_the_caller(telling: Telling, traced: Traced, each_way: str) -> None:
    arrays = traced.given(traced.numpy()[:3])

    def broken(*given: Any, **options: Any) -> Any:
        raise ArithmeticError("Straße gesperrt")

    telling.attend = broken  # type: ignore[method-assign]
    for run in (moc.attention, jax.jit(moc.attention, static_argnames=("spec", "backend"))):
        with pytest.raises(jax.errors.JaxRuntimeError, match="ArithmeticError: Straße gesperrt"):
            jax.block_until_ready(run(*arrays, spec=traced.SPEC, backend=telling))


def test_a_layout_that_breaks_a_rule(traced: Traced) -> None:
    q, k, v, *_ = traced.given(traced.numpy())
    layout = moc.route(q, k, traced.SPEC)
    wrong = jax.tree.map(lambda x: x + 99, layout)
    with pytest.raises(moc.LayoutError, match="must hold chunk numbers < "):
        moc.attend(q, k, v, wrong, options=moc.Options(checked=True))
    with pytest.raises(moc.LayoutError, match="selected must be int32"):
        moc.Layout(layout.selected.astype(jnp.float32), layout.plan)


def test_the_device_of_a_traced_array_is_the_default(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsemoc.frameworks import jax as jax_arrays

    seen: list[str] = []
    jax.jit(lambda x: seen.append(jax_arrays.device(x)))(jnp.zeros(3))
    with jax.default_device(jax.devices("cpu")[0]):
        jax.jit(lambda x: seen.append(jax_arrays.device(x)))(jnp.zeros(4))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v = traced.given(traced.numpy()[:3])
    with pytest.raises(moc.UnsupportedError, match="runs on cpu, not cuda"):
        jax.jit(lambda q: moc.attention(q, q, q, traced.FREE, backend="reference"))(jnp.zeros((1, 8, 2, 8)))
    assert seen == ["cpu", "cpu"]
    assert isinstance(moc.attention(q, k, v, traced.SPEC, backend="reference"), jax.Array)  # it lies on the CPU

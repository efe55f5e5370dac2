"""JAX arrays on the CPU give the bits of NumPy arrays: at once, under jit, vmap and scan, by either way to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import conformance
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import Problem

if TYPE_CHECKING:
    from tests.frameworks.conftest import Telling, Traced

jax = pytest.importorskip("jax", reason="JAX arrays need JAX")
jnp = jax.numpy

DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def wide() -> Iterator[None]:
    """JAX with 64-bit numbers."""
    with jax.enable_x64(True):
        yield


def everything(spec: Any, q: Any, k: Any, v: Any, d_out: Any, d_lse: Any, **options: Any) -> Any:
    """Return what every public function gives."""
    axes, backend = options.get("axes", "bshd"), options["backend"]
    out, lse, layout = moc.attention(q, k, v, spec, **options, return_lse=True, return_layout=True)
    again = moc.attend(q, k, v, moc.route(q, k, spec, **options), axes=axes, backend=backend, return_lse=True)
    grads = moc.attention_grads(q, k, v, spec, d_out, d_lse=d_lse, **options)
    means = moc.pool(k, layout.plan, key_lengths=options.get("key_lengths"), axes=axes, backend=backend)
    return out, lse, layout.selected, *again, *grads, means


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("packed", "jit"), [(False, True), (True, False)])
def test_the_bits_of_numpy(backend: str, traced: Traced, dtype: str, packed: bool, jit: bool, each_way: str) -> None:
    arrays = traced.numpy(dtype, packed)
    options: dict[str, Any] = {"backend": backend}
    if packed:
        options["stream"] = (traced.STREAM, moc.Stream((moc.Segment("video", 13),)))
    else:
        options["key_lengths"] = traced.LENGTHS

    def run(*given: Any) -> Any:
        return everything(traced.FREE if packed else traced.SPEC, *given, **options)

    found = (jax.jit(run) if jit else run)(*traced.given(arrays))
    traced.same(found, run(*arrays))


def test_heads_first(backend: str, traced: Traced) -> None:
    q, k, v, d_out, d_lse = traced.numpy()
    turned = [x.swapaxes(1, 2) for x in (q, k, v, d_out)]
    options: dict[str, Any] = {"axes": "bhsd", "backend": backend}
    arrays = (*turned, d_lse)
    found = jax.jit(lambda *given: everything(traced.SPEC, *given, **options))(*traced.given(arrays))
    traced.same(found, everything(traced.SPEC, *arrays, **options))


def test_a_part_of_the_queries_and_a_scale(backend: str, traced: Traced) -> None:
    q, k, v, *_ = traced.numpy()
    options: dict[str, Any] = {"scale": 0.3, "q_start": 20, "backend": backend}
    found = jax.jit(lambda q, k, v: moc.attention(q, k, v, traced.SPEC, **options))(*traced.given((q[:, :7], k, v)))
    traced.same(found, moc.attention(q[:, :7], k, v, traced.SPEC, **options))


def test_no_routes_at_all(backend: str, traced: Traced) -> None:
    """Arrays without an element go to the host and back."""
    q, k, v, *_ = traced.numpy()
    spec = moc.RoutingSpec(top_k=0, chunks=moc.Chunks(size=6), anchors=("chunk",))
    layout = moc.route(*traced.given((q, k)), spec, backend=backend)
    assert layout.selected.shape == (2, 4, 42, 0)
    found = moc.attend(*traced.given((q, k, v)), layout, backend=backend)
    traced.same(found, moc.attention(q, k, v, spec, backend=backend))


def test_values_may_be_traced(backend: str, traced: Traced) -> None:
    """Lengths and seed are arguments of a compiled program: one program serves them all."""
    q, k, v, *_ = traced.numpy()
    given, traces = traced.given((q, k, v)), []

    def trace(lengths: Any, seed: Any) -> Any:
        traces.append(1)
        options: dict[str, Any] = {"key_lengths": lengths, "seed": seed, "training": True, "backend": backend}
        return moc.attention(*given, traced.DROPOUT, **options)

    run = jax.jit(trace)
    results = []
    for lengths, seed in ((traced.LENGTHS, 7), (traced.LENGTHS, -5), (((9, 9, 9, 9, -9),) * 2, 7)):
        options: dict[str, Any] = {"key_lengths": np.array(lengths), "seed": seed, "training": True}
        results.append(run(jnp.asarray(lengths), jnp.int32(seed)))
        traced.same(results[-1], moc.attention(q, k, v, traced.DROPOUT, backend=backend, **options))
    assert len(traces) == 1
    assert not np.array_equal(results[0], results[1])


@pytest.mark.usefixtures("wide")
def test_seeds_of_every_kind(backend: str, traced: Traced) -> None:
    q, k = (x[:1, -3:] if x.shape[2] == 4 else x[:1] for x in traced.numpy()[:2])
    given = traced.given((q, k))
    options: dict[str, Any] = {"training": True, "backend": backend}
    high = 2**63 + 2**33 + 7
    for seed, number in (
        *((kind(7), 7) for kind in (int, np.uint8, jnp.int8, jnp.uint8, jnp.int32, jnp.uint32, jnp.int64, jnp.uint64)),
        *((kind(-7), -7) for kind in (int, np.int64, jnp.int8, jnp.int32, jnp.int64)),
        *((high, high), (jnp.uint64(high), high), (jnp.int64(high - 2**64), high)),
    ):
        found = moc.route(*given, traced.DROPOUT, seed=seed, **options).selected
        traced.same(found, moc.route(q, k, traced.DROPOUT, seed=number, **options).selected)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 1, None), (2, None, 0)])
def test_vmap_is_a_loop(backend: str, traced: Traced, axes: Any, each_way: str) -> None:
    arrays = traced.numpy()[:3]
    many = [x if axis is None else np.stack([x, -x, 2 * x], axis) for x, axis in zip(arrays, axes, strict=True)]
    options: dict[str, Any] = {"key_lengths": traced.LENGTHS, "seed": 3, "training": True, "backend": backend}

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, traced.DROPOUT, **options)

    found = jax.jit(jax.vmap(run, axes))(*traced.given(tuple(many)))
    for index in range(3):
        one = [x if axis is None else x.take(index, axis) for x, axis in zip(many, axes, strict=True)]
        traced.same(found[index], run(*one))


def test_vmap_in_vmap_over_packed_arrays_and_seeds(backend: str, traced: Traced, each_way: str) -> None:
    q, k, v = (np.stack([x, x[::-1]]) for x in traced.numpy(packed=True)[:3])
    seeds = np.arange(3, dtype=np.uint32)
    streams = (traced.STREAM, moc.Stream((moc.Segment("video", 13),)))
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=4, dropout=moc.RouteDropout(off=1.0))

    def run(q: Any, k: Any, v: Any, seed: Any) -> Any:
        return moc.attention(q, k, v, spec, stream=streams, seed=seed, training=True, backend=backend)

    inner = jax.vmap(run, (None, None, None, 0))
    found = jax.vmap(inner, (0, 0, 0, None))(*traced.given((q, k, v, seeds)))
    for row in range(2):
        for column in range(3):
            traced.same(found[row, column], run(q[row], k[row], v[row], seeds[column]))


def test_scan_over_layers(backend: str, traced: Traced, each_way: str) -> None:
    x, scales = traced.draw(2, 42, 2, 8), traced.draw(3, 3)

    def layer(x: Any, w: Any) -> Any:
        x = moc.attention(x * w[0], x * w[1], x * w[2], traced.SPEC, backend=backend)
        return x, x

    _, found = jax.jit(lambda x, w: jax.lax.scan(layer, x, w))(*traced.given((x, scales)))
    for one, w in zip(found, scales, strict=True):
        x, _ = layer(x, w)
        traced.same(one, x)


def test_a_layout_is_a_pytree(backend: str, traced: Traced) -> None:
    q, k, v, *_ = traced.numpy()
    options: dict[str, Any] = {"key_lengths": traced.LENGTHS, "backend": backend}
    expected = moc.route(q, k, traced.SPEC, **options)
    arrays = traced.given((q, k, v))
    layout = jax.jit(lambda q, k: moc.route(q, k, traced.SPEC, **options))(*arrays[:2])
    assert isinstance(layout, moc.Layout)
    traced.same(layout, [expected.selected, expected.key_lengths])
    found = jax.jit(lambda layout, q, k, v: moc.attend(q, k, v, layout, backend=backend))(layout, *arrays)
    traced.same(found, moc.attend(q, k, v, expected, backend=backend))
    leaves, tree = jax.tree.flatten(layout)
    assert tree == jax.tree.structure(jax.tree.map(lambda _: object(), layout))
    assert jax.tree.unflatten(tree, leaves).plan == expected.plan
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), layout)
    _, outs = jax.lax.scan(lambda _, one: (0, moc.attend(*arrays, one, backend=backend)), 0, stacked)
    traced.same(outs, np.stack([found, found]))
    layout.validate()
    assert (layout.pairs(), layout.density()) == (expected.pairs(), expected.density())


def test_a_layout_of_another_library(backend: str, traced: Traced) -> None:
    q, k, v, *_ = traced.numpy()
    layout = moc.route(q, k, traced.SPEC, key_lengths=traced.LENGTHS, backend=backend)
    expected = moc.attend(q, k, v, layout, backend=backend)
    traced.same(moc.attend(*traced.given((q, k, v)), layout, backend=backend), expected)
    other = moc.route(*traced.given((q, k)), traced.SPEC, key_lengths=traced.LENGTHS, backend=backend)
    np.testing.assert_array_equal(moc.attend(q, k, v, other, backend=backend), expected)


def test_centroids(backend: str, traced: Traced) -> None:
    q, k, *_ = traced.given(traced.numpy())
    means = moc.pool(k, moc.plan(traced.SPEC), backend=backend)
    found = moc.route(q, None, traced.SPEC, centroids=means, backend=backend)
    traced.same(found, moc.route(q, k, traced.SPEC, backend=backend))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32"])
def test_key_lengths_of_every_kind(backend: str, traced: Traced, dtype: str) -> None:
    q, k, *_ = traced.given(traced.numpy())
    expected = moc.route(q, k, traced.SPEC, key_lengths=traced.LENGTHS, backend=backend)
    lengths = jnp.asarray(traced.LENGTHS, dtype)
    for given in (lengths, np.asarray(lengths), lengths.tolist(), [list(row) for row in lengths]):
        found = moc.route(q, k, traced.SPEC, key_lengths=given, backend=backend)
        traced.same(found, expected)
    of_numpy = moc.route(np.asarray(q), np.asarray(k), traced.SPEC, key_lengths=lengths, backend=backend)
    traced.same(expected.selected, of_numpy.selected)


def test_what_a_backend_is_told(telling: Telling, traced: Traced) -> None:
    q, k, v, *_ = traced.given(traced.numpy("bfloat16"))
    jax.jit(lambda q, k, v: moc.attention(q, k, v, traced.SPEC, backend=telling))(q, k, v).block_until_ready()
    problem, *arrays = telling.given["attend"][:4]
    assert (problem.framework, problem.device, problem.dtype, problem.batch) == ("numpy", "cpu", "bfloat16", 2)
    assert [(type(x), x.shape) for x in arrays] == [(np.ndarray, x.shape) for x in (q, k, v)]
    assert not problem.backward


def test_donated_arrays(backend: str, traced: Traced) -> None:
    q, k, v, *_ = traced.numpy()
    v = traced.draw(2, 42, 2, 8)
    donated = traced.given((q, k, v))
    run = jax.jit(lambda q, k, v: moc.attention(q, k, v, traced.SPEC, backend=backend), donate_argnums=0)
    traced.same(run(*donated), moc.attention(q, k, v, traced.SPEC, backend=backend))
    assert donated[0].is_deleted()


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["selection", "backward", "dropout", "packing"])
def test_conformance_in_jax_arrays(backend: str, name: str) -> None:
    conformance.PROPERTIES[name].run(backend, examples=4, framework="jax")


def test_the_suite_is_refused_what_jax_cannot_hold() -> None:
    problem = Problem(
        moc.RoutingSpec(), (moc.Stream((moc.Segment("video", 4),)),), batch=1, heads=1, kv_heads=1, dtype="float64"
    )
    with pytest.raises(moc.UnsupportedError, match="testing: JAX holds no float64"):
        ApiImplementation("reference", framework="jax").pool(problem)

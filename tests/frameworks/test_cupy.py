"""CuPy arrays through every public function: the bits of the same call on NumPy arrays, and no look at the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Backend
from sparsemoc.spec.host import host, is_cupy
from sparsemoc.spec.philox import seed_key
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.libraries import library
from sparsemoc.testing.problems import Problem as Drawn
from tests.backends.cupy.fake_arrays import READS, Device, ndarray
from tests.backends.cupy.fake_cupy import installed
from tests.frameworks.cupy_problem import (
    DEVICE,
    DROPOUT,
    FREE,
    LENGTHS,
    SPEC,
    STREAM,
    OnCupy,
    bits,
    numpy_arrays,
    put,
    same,
)

#: The samples of the packed problem.
STREAMS = (STREAM, moc.Stream((moc.Segment("video", 11),)))


@pytest.fixture(autouse=True)
def _cupy() -> Iterator[None]:
    with installed():
        yield


@pytest.fixture
def native() -> OnCupy:
    return OnCupy()


def both(call: Any, backend: Backend, **arrays: Any) -> tuple[Any, Any]:
    """Return what a call gives on CuPy's arrays, of which the host reads none, and on the NumPy arrays."""
    READS.clear()
    found = call(backend=backend, **{name: put(array) for name, array in arrays.items()})
    assert not READS
    return found, call(backend="reference", **arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_a_call_and_its_gradients(native: OnCupy, axes: str, dtype: str) -> None:
    def call(q: Any, k: Any, v: Any, d_out: Any, d_lse: Any, backend: Any) -> tuple[Any, ...]:
        given: dict[str, Any] = {"axes": axes, "backend": backend, "training": True, "seed": 3, "key_lengths": LENGTHS}
        out, lse, layout = moc.attention(q, k, v, DROPOUT, return_lse=True, return_layout=True, **given)
        grads = moc.attention_grads(q, k, v, DROPOUT, d_out, d_lse=d_lse, **given)
        return out, lse, layout.selected, layout.key_lengths, *grads

    arrays = numpy_arrays(dtype)
    if axes == "bhsd":
        arrays = {name: array.swapaxes(1, 2) for name, array in arrays.items()}
    lse = np.random.default_rng(0).standard_normal((2, 4, 42), np.float32)
    found, expected = both(call, native, **arrays, d_lse=lse)
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    problem = native.given["attend_backward"][0]
    assert (problem.framework, problem.device, problem.dtype, problem.backward) == ("cupy", "cuda", dtype, True)


def test_packed_samples(native: OnCupy) -> None:
    def call(q: Any, k: Any, v: Any, d_out: Any, backend: Any) -> tuple[Any, ...]:
        given: dict[str, Any] = {"stream": STREAMS, "backend": backend}
        out, lse = moc.attention(q, k, v, FREE, return_lse=True, **given)
        return out, lse, *moc.attention_grads(q, k, v, FREE, d_out, **given)

    for one, other in zip(*both(call, native, **numpy_arrays(packed=True)), strict=True):
        same(one, other)


def test_the_parts_of_a_call(native: OnCupy) -> None:
    def call(q: Any, k: Any, v: Any, d_out: Any, backend: Any) -> tuple[Any, ...]:
        centroids = moc.pool(k, moc.plan(SPEC), backend=backend)
        layout = moc.route(q, None, SPEC, centroids=centroids, backend=backend)
        out, lse = moc.attend(q, k, v, layout, return_lse=True, backend=backend)
        return centroids, layout.selected, out, lse

    for one, other in zip(*both(call, native, **numpy_arrays()), strict=True):
        same(one, other)


def test_any_strides_in_the_same_memory(native: OnCupy) -> None:
    """Sliced, reversed, broadcast: a backend is given views, not copies."""
    arrays = numpy_arrays()
    q = np.repeat(arrays["q"], 2, axis=3)[..., ::2]
    k = arrays["k"][:, ::-1].copy()[:, ::-1]
    v = np.broadcast_to(arrays["v"][:1], arrays["v"].shape)
    out = moc.attention(put(q), put(k), put(v), SPEC, backend=native)
    same(out, moc.attention(q, k, v, SPEC, backend="reference"))
    for given, own in zip(native.given["attend"][1:4], (q, k, v), strict=True):
        assert given.memory.ctypes.data == own.ctypes.data
        assert given.strides == own.strides


@pytest.mark.parametrize("kind", ["list", "int32", "int64", "uint8", "cupy int64", "cupy uint8", "cupy elsewhere"])
def test_key_lengths_of_any_kind(native: OnCupy, kind: str) -> None:
    """They are clamped, and go to the device of q; a number too long for its segment is the segment's length."""
    values = [list(row) for row in LENGTHS]
    values[1][4] = 200
    *_, last = kind.split()
    lengths: Any = values if kind == "list" else np.array(values, "int64" if last == "elsewhere" else last)
    if kind.startswith("cupy"):
        lengths = put(lengths, 0 if last == "elsewhere" else DEVICE)
    arrays = numpy_arrays()
    q, k = put(arrays["q"]), put(arrays["k"])
    READS.clear()
    layout = moc.route(q, k, SPEC, key_lengths=lengths, backend=native)
    assert not READS
    same(layout.key_lengths, np.array(values, np.int32))
    same(layout.selected, moc.route(arrays["q"], arrays["k"], SPEC, key_lengths=values, backend="reference").selected)


def test_key_lengths_are_clamped(native: OnCupy) -> None:
    arrays = numpy_arrays()
    lengths = np.array([[-5, 2**40, 3, 0, 1]] * 2)
    layout = moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, key_lengths=put(lengths), backend=native)
    assert bits(layout.key_lengths)[0].tolist() == [0, 2**31 - 1, 3, 0, 1]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "uint64"])
def test_a_seed_on_the_device(native: OnCupy, dtype: str) -> None:
    arrays = numpy_arrays()
    number = 2**64 - 3 if dtype == "uint64" else 7
    given: dict[str, Any] = {"training": True, "batch_start": 3, "head_start": 1}
    q, k = put(arrays["q"]), put(arrays["k"])
    seed = put(np.array(number, dtype), 0)
    layout = moc.route(q, k, DROPOUT, seed=seed, backend=native, **given)
    random = native.given["route"][4]
    assert (random.seed.dtype, random.seed.ndim, random.seed.device.id) == (np.int64, 0, DEVICE)
    assert random.key == seed_key(number)  # read by a backend that computes on the host
    expected = moc.route(arrays["q"], arrays["k"], DROPOUT, seed=number, backend="reference", **given)
    same(layout.selected, expected.selected)


def test_a_seed_on_the_host(native: OnCupy) -> None:
    arrays = numpy_arrays()
    for seed in (-1, np.int64(5), np.array(5)):
        layout = moc.route(put(arrays["q"]), put(arrays["k"]), DROPOUT, seed=seed, training=True, backend=native)
        expected = moc.route(arrays["q"], arrays["k"], DROPOUT, seed=seed, training=True, backend="reference")
        same(layout.selected, expected.selected)


def test_numpy_calls_take_lengths_and_seeds_from_the_device() -> None:
    arrays = numpy_arrays()
    given: dict[str, Any] = {"training": True, "backend": "reference"}
    found = moc.route(
        arrays["q"], arrays["k"], DROPOUT, key_lengths=put(np.array(LENGTHS)), seed=put(np.array(3)), **given
    )
    expected = moc.route(arrays["q"], arrays["k"], DROPOUT, key_lengths=LENGTHS, seed=3, **given)
    np.testing.assert_array_equal(found.selected, expected.selected)


def test_a_layout_goes_from_library_to_library(native: OnCupy) -> None:
    arrays = numpy_arrays()
    q, k, v = (arrays[name] for name in "qkv")
    layout = moc.route(put(q), put(k), SPEC, key_lengths=LENGTHS, backend=native)
    other = moc.route(q, k, SPEC, key_lengths=LENGTHS, backend="reference")
    out = moc.attend(q, k, v, other, backend="reference")
    np.testing.assert_array_equal(moc.attend(q, k, v, layout, backend="reference"), out)
    same(moc.attend(put(q), put(k), put(v), other, backend=native), out)
    same(moc.attend(put(q), put(k), put(v), layout, backend=native), out)
    assert native.given["attend"][4] is layout
    elsewhere = replace(layout, selected=put(bits(layout.selected), 0), key_lengths=put(bits(layout.key_lengths), 0))
    same(moc.attend(put(q), put(k), put(v), elsewhere, backend=native), out)
    assert native.given["attend"][4].selected.device.id == DEVICE


def test_a_layout_is_read_on_the_host(native: OnCupy) -> None:
    arrays = numpy_arrays()
    layout = moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, key_lengths=LENGTHS, backend=native)
    other = moc.route(arrays["q"], arrays["k"], SPEC, key_lengths=LENGTHS, backend="reference")
    layout.validate()
    np.testing.assert_array_equal(layout.dense_mask(), other.dense_mask())
    np.testing.assert_array_equal(layout.chunk_major().query, other.chunk_major().query)
    assert (layout.pairs(), layout.density(), layout.flops(8)) == (other.pairs(), other.density(), other.flops(8))
    assert layout.report().loop_closures == other.report().loop_closures
    assert repr(layout) == repr(other)
    assert isinstance(layout.on_host().selected, np.ndarray)


def test_a_monitor_counts(native: OnCupy) -> None:
    arrays, monitors = numpy_arrays(), [moc.training.Monitor(), moc.training.Monitor()]
    layout = moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, backend=native)
    monitors[0].record("layer", layout)
    monitors[1].record("layer", layout.on_host())
    assert monitors[0].summary().to_dict() == monitors[1].summary().to_dict()


def test_a_checked_call_reads_the_layout(native: OnCupy) -> None:
    arrays = numpy_arrays()
    q, k, v = (put(arrays[name]) for name in "qkv")
    layout = moc.route(q, k, SPEC, backend=native)
    wrong = replace(layout, selected=put(np.full_like(bits(layout.selected), 99)))
    with pytest.raises(
        moc.LayoutError, match=r"^Layout: selected\[0, 0, 0\] must hold chunk numbers < 9, got \[99, 99\]"
    ):
        moc.attend(q, k, v, wrong, backend=native, options=moc.Options(checked=True))


def test_the_suite_gives_them_with_their_strides(native: OnCupy) -> None:
    with Device(DEVICE):
        given = ApiImplementation(native)
    for strides in ("sliced", "reversed", "transposed"):
        problem = Drawn(SPEC, (STREAM,), batch=2, heads=4, kv_heads=2, dtype="bfloat16", strides=strides)
        with Device(DEVICE):
            centroids = given.pool(problem)
        k = native.given["pool"][1]
        assert (k.shape, k.strides) == (problem.arrays.k.shape, problem.present(problem.arrays.k).strides)
        np.testing.assert_array_equal(k.memory, problem.arrays.k)
        np.testing.assert_array_equal(centroids, ApiImplementation("reference").pool(problem))
    with pytest.raises(TypeError, match=r"^CuPy arrays must come back where they went in, got ndarray\."):
        library("cupy").take(np.zeros(1))


def test_cupy_is_told_without_importing_it() -> None:
    class Derived(ndarray):
        pass

    array = put(np.arange(3))
    assert is_cupy(array)
    assert is_cupy(Derived(np.arange(3)))
    assert not is_cupy(np.arange(3))
    assert not is_cupy(type("ndarray", (), {"__module__": "cupyx.scipy"})())
    np.testing.assert_array_equal(host(array), np.arange(3))
    assert host(put(np.zeros(2, ml_dtypes.bfloat16))).dtype == ml_dtypes.bfloat16

"""The backend "cupy" behind calls on CuPy arrays: launched as on a GPU, with the bits of the same kernels on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Backend
from sparsemoc.backends.cupy import backend as backends
from sparsemoc.backends.cupy.config import default_config
from tests.backends.cupy.fake_arrays import READS
from tests.backends.cupy.fake_cupy import installed
from tests.frameworks.cupy_problem import DEVICE, DROPOUT, LENGTHS, SPEC, numpy_arrays, put, same


def taking(framework: str, device: str) -> Backend:
    """Return the backend for one kind of arrays, whatever this process is set to."""
    able = replace(backends.CupyBackend.capabilities, frameworks=(framework,), devices=(device,))
    made: Backend = type("Cupy", (backends.CupyBackend,), {"capabilities": able})()
    return made


@pytest.fixture
def cupy() -> Iterator[Any]:
    with installed() as module:
        yield module


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_call_and_its_gradients(cupy: Any, dtype: str) -> None:
    """Nothing is read by the host, and every kernel runs on the device of the arrays."""
    config = default_config(8, dtype, 0)
    lse = np.random.default_rng(0).standard_normal((2, 4, 42), np.float32)
    arrays = {**numpy_arrays(dtype), "d_lse": lse, "seed": np.array(7)}

    def call(backend: Backend, q: Any, k: Any, v: Any, d_out: Any, d_lse: Any, seed: Any) -> tuple[Any, ...]:
        given: dict[str, Any] = {"backend": backend, "config": config, "key_lengths": LENGTHS, "training": True}
        out, lse, layout = moc.attention(q, k, v, DROPOUT, return_lse=True, return_layout=True, seed=seed, **given)
        grads = moc.attention_grads(q, k, v, DROPOUT, d_out, d_lse=d_lse, seed=seed, **given)
        return out, lse, layout.selected, *grads

    READS.clear()
    found = call(taking("cupy", "cuda"), **{name: put(array) for name, array in arrays.items()})
    assert not READS
    assert {launch.device for launch in cupy.launches} == {DEVICE}
    for one, other in zip(found, call(taking("numpy", "cpu"), **arrays), strict=True):
        same(one, other)


def test_any_strides_without_a_copy(cupy: Any) -> None:
    arrays = numpy_arrays()
    q = np.repeat(arrays["q"], 2, axis=3)[..., ::2]
    k = arrays["k"][:, ::-1].copy()[:, ::-1]
    v = np.broadcast_to(arrays["v"][:1], arrays["v"].shape)
    config = default_config(8, "float32", 0)
    out = moc.attention(put(q), put(k), put(v), SPEC, backend=taking("cupy", "cuda"), config=config)
    same(out, moc.attention(q, k, v, SPEC, backend=taking("numpy", "cpu"), config=config))


def test_a_layout_that_is_wrong_shows_at_the_next_call(cupy: Any) -> None:
    arrays, backend = numpy_arrays(), taking("cupy", "cuda")
    q, k, v = (put(arrays[name]) for name in "qkv")
    layout = moc.route(q, k, SPEC, backend=backend)
    wrong = replace(layout, selected=put(np.full_like(layout.selected.memory, 99)))
    moc.attend(q, k, v, wrong, backend=backend)
    with pytest.raises(moc.LayoutError, match=r"^attend on .*got chunk 99 in row "):
        moc.attend(q, k, v, layout, backend=backend)

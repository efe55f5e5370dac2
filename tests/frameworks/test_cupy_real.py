"""CuPy itself, as far as it goes without a GPU: its arrays can be made in memory that is there, and looked at."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.frameworks import framework_of
from sparsemoc.spec.host import is_cupy

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


def array(*shape: int, dtype: Any = np.float32) -> Any:
    """Return an array of CuPy's in the CPU's memory: nothing may read it, and nothing here does."""
    memory = np.zeros(shape, dtype)
    owned = cupy.cuda.UnownedMemory(memory.ctypes.data, memory.nbytes, memory, device_id=0)
    return cupy.ndarray(shape, dtype=dtype, memptr=cupy.cuda.MemoryPointer(owned, 0))


@pytest.fixture(scope="module")
def framework() -> Any:
    return framework_of("attention", q=array(1, 4, 2, 8))


def test_its_arrays_are_known(framework: Any) -> None:
    assert framework.NAME == "cupy"
    assert is_cupy(array(1))
    assert not is_cupy(np.zeros(1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(framework: Any, dtype: str) -> None:
    x = array(2, 3, dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert framework.checked(x, "q", "attention") is x
    assert framework.dtype(x) == dtype
    assert framework.device(x) == "cuda:0"


def test_views(framework: Any) -> None:
    x = array(3, 5, 2, 8)[:, ::-1]
    turned = framework.transpose(x, (0, 2, 1, 3))
    assert (turned.shape, turned.strides) == ((3, 2, 5, 8), (320, 32, -64, 4))
    assert framework.expand(x[0]).shape == (1, 5, 2, 8)
    assert turned.data.ptr == x.data.ptr
    assert framework.show(x, "cupy") is x
    assert not framework.records(x)
    assert not framework.deterministic()


def test_what_is_wrong_is_named() -> None:
    q = np.zeros((1, 16, 2, 8), np.float32)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1)
    with pytest.raises(moc.ShapeError) as raised:
        moc.attention(q, array(1, 16, 2, 8), q, spec)
    assert str(raised.value) == (
        "attention: all arrays must come from one library, got `q` from numpy, `k` from cupy, `v` from numpy."
    )
    x = array(1, 16, 2, 8, dtype=np.int32)
    with pytest.raises(moc.ShapeError, match=r"^pool: `k` must be float16, .* got int32. Hint: array.astype\(cupy"):
        moc.pool(x, moc.plan(spec, moc.Stream((moc.Segment("video", 16),))))
    with pytest.raises(
        moc.SpecError, match=r"^route: seed must be a whole number or a 0-d integer array, got int64\[2\]"
    ):
        moc.route(array(1, 16, 2, 8), array(1, 16, 2, 8), spec, seed=array(2, dtype=np.int64))


def test_a_backend_is_asked_before_anything_is_read() -> None:
    x = array(1, 16, 2, 8)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1)
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(x, x, x, spec, backend="reference")
    assert str(raised.value) == (
        'attention: backend "reference" runs on cpu, not cuda (float32 on cuda (cupy), heads 2/2, head_dim 8/8). '
        'Hint: backend="auto" chooses one that can, if there is one.'
    )

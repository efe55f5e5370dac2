"""CuPy arrays in the wrong place, dtype or company: the exception and its whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from tests.backends.cupy.fake_cupy import installed
from tests.frameworks.cupy_problem import DROPOUT, SPEC, OnCupy, numpy_arrays, put


@pytest.fixture(autouse=True)
def _cupy() -> Iterator[None]:
    with installed():
        yield


ARRAYS = numpy_arrays()
ONE_LIBRARY = "all arrays must come from one library, got"
FLOATS = "must be float16, bfloat16, float32, float64 in native byte order, got"


class Other:
    """What CuPy makes that is no array."""


Other.__module__ = "cupy"


def attention(**given: Any) -> Any:
    arrays = {name: put(ARRAYS[name]) for name in "qkv"}
    return moc.attention(**{**arrays, "spec": SPEC, "backend": OnCupy(), **given})


def grads(**given: Any) -> Any:
    arrays = {name: put(array) for name, array in ARRAYS.items()}
    return moc.attention_grads(**{**arrays, "spec": SPEC, "backend": OnCupy(), **given})


def route(**given: Any) -> Any:
    arrays = {name: put(ARRAYS[name]) for name in "qk"}
    return moc.route(**{**arrays, "spec": SPEC, "backend": OnCupy(), **given})


#: A call; the exception; the text.
CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "keys of NumPy": (
        lambda: attention(k=ARRAYS["k"]), moc.ShapeError,
        f"attention: {ONE_LIBRARY} `q` from cupy, `k` from numpy, `v` from cupy.",
    ),
    "queries of NumPy": (
        lambda: attention(q=ARRAYS["q"]), moc.ShapeError,
        f"attention: {ONE_LIBRARY} `q` from numpy, `k` from cupy, `v` from cupy.",
    ),
    "d_lse of NumPy": (
        lambda: grads(d_lse=np.zeros((2, 4, 42), np.float32)), moc.ShapeError,
        f"attention_grads: {ONE_LIBRARY} `q` from cupy, `d_lse` from numpy.",
    ),
    "centroids of NumPy": (
        lambda: route(k=None, centroids=np.zeros((2, 2, 7, 8), np.float32)), moc.ShapeError,
        f"route: {ONE_LIBRARY} `q` from cupy, `centroids` from numpy.",
    ),
    "what is no array": (
        lambda: attention(v=Other()), moc.ShapeError, "attention: `v` must be a CuPy array, got ",
    ),
    "another device": (
        lambda: attention(v=put(ARRAYS["v"], 0)), moc.ShapeError,
        "attention: all arrays must have one device, got `q` cuda:1, `k` cuda:1, `v` cuda:0.",
    ),
    "integers": (
        lambda: attention(q=put(ARRAYS["q"].astype(np.int32))), moc.ShapeError,
        f"attention: `q` {FLOATS} int32. Hint: array.astype(cupy.float32).",
    ),
    "big-endian": (
        lambda: attention(q=put(ARRAYS["q"].astype(">f4"))), moc.ShapeError,
        f"attention: `q` {FLOATS} float32 in the other one. Hint: array.astype(cupy.float32).",
    ),
    "float64": (
        lambda: attention(**{name: put(ARRAYS[name].astype(np.float64)) for name in "qkv"}), moc.UnsupportedError,
        'attention: backend "on_cupy" takes float16, bfloat16, float32, not float64 (float64 on cuda (cupy), '
        'heads 4/2, head_dim 8/5). Hint: backend="auto" chooses one that can, if there is one.',
    ),
    "a backend of the CPU": (
        lambda: attention(backend="reference"), moc.UnsupportedError,
        'attention: backend "reference" runs on cpu, not cuda (float32 on cuda (cupy), heads 4/2, head_dim 8/5). '
        'Hint: backend="auto" chooses one that can, if there is one.',
    ),
    "key_lengths of floats": (
        lambda: route(key_lengths=put(np.zeros((2, 5), np.float32))), moc.ShapeError,
        "route: `key_lengths` must be an integer array, got dtype float32. Hint: array.astype(cupy.int32).",
    ),
    "key_lengths of booleans": (
        lambda: route(key_lengths=put(np.zeros((2, 5), bool))), moc.ShapeError,
        "route: `key_lengths` must be an integer array, got dtype bool. Hint: array.astype(cupy.int32).",
    ),
    "shape of key_lengths": (
        lambda: route(key_lengths=put(np.zeros((1, 5), np.int32))), moc.ShapeError,
        "route: `key_lengths` must have shape (batch, segments) = (2, 5), got (1, 5). "
        "It holds the valid tokens of each segment.",
    ),
    "a row of seeds": (
        lambda: route(spec=DROPOUT, training=True, seed=put(np.arange(2))), moc.SpecError,
        "route: seed must be a whole number or a 0-d integer array, got int64[2]. Hint: seed=0.",
    ),
    "a seed of floats": (
        lambda: route(spec=DROPOUT, training=True, seed=put(np.array(1.5))), moc.SpecError,
        "route: seed must be a whole number or a 0-d integer array, got float64[]. Hint: seed=0.",
    ),
    "NumPy's seed of floats": (
        lambda: route(spec=DROPOUT, training=True, seed=1.5), moc.SpecError,
        "route: seed must be a whole number or a 0-d integer array, got 1.5 (float). Hint: seed=0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str) -> None:
    call, kind, text = CASES[name]
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    found = str(raised.value)
    assert found.startswith(text) if text.endswith(" ") else found == text


@pytest.mark.parametrize("values", [np.array(1.5), np.arange(2)])
def test_a_seed_that_is_none_beside_numpy_arrays(values: Any) -> None:
    arrays = {name: ARRAYS[name] for name in "qk"}
    with pytest.raises(moc.SpecError, match=r"^route: seed must be a whole number or a 0-d integer array, got "):
        moc.route(**arrays, spec=DROPOUT, training=True, seed=put(values), backend="reference")


def test_scalars_in_a_list_are_not_read_unasked() -> None:
    lengths = [[put(np.array(1))] * 5] * 2
    with pytest.raises(moc.ShapeError, match=r"^route: `key_lengths` must be an integer array, got \[\["):
        route(key_lengths=lengths)

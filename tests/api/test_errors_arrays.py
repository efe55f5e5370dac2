"""Arrays of the wrong kind, shape, dtype or library: the exception and its whole text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


FLOATS = "must be float16, bfloat16, float32, float64 in native byte order, got "
HINT = "Hint: array.astype(numpy.float32)."

#: An array of the wrong kind; the exception; the text after "function: `argument` ".
KINDS: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (
        None, moc.UnsupportedError,
        "must be a NumPy, CuPy or JAX array or a torch tensor, got None (NoneType). Hint: pass numpy.asarray(array).",
    ),
    "a list": (
        [[1.0]], moc.UnsupportedError,
        "must be a NumPy, CuPy or JAX array or a torch tensor, got [[1.0]] (list). Hint: pass numpy.asarray(array).",
    ),
    "a number": (np.float32(1), moc.ShapeError, "must be a NumPy array, got np.float32(1.0) (float32)."),
    "a masked array": (
        np.ma.zeros((2, 15, 4, 8), np.float32), moc.ShapeError,
        "must not be a masked array. Hint: use key_lengths for padding.",
    ),
    "complex": (zeros(2, 15, 4, 8, dtype=np.complex64), moc.ShapeError, f"{FLOATS}complex64. {HINT}"),
    "integers": (zeros(2, 15, 4, 8, dtype=np.int32), moc.ShapeError, f"{FLOATS}int32. {HINT}"),
    "booleans": (zeros(2, 15, 4, 8, dtype=bool), moc.ShapeError, f"{FLOATS}bool. {HINT}"),
    "objects": (zeros(2, 15, 4, 8, dtype=object), moc.ShapeError, f"{FLOATS}object. {HINT}"),
    "extended": (
        zeros(2, 15, 4, 8, dtype=np.longdouble), moc.ShapeError,
        f"{FLOATS}{np.dtype(np.longdouble).name}. {HINT}",
    ),
    "float8": (
        zeros(2, 15, 4, 8, dtype=ml_dtypes.float8_e4m3fn), moc.ShapeError, f"{FLOATS}float8_e4m3fn. {HINT}",
    ),
    "big-endian": (zeros(2, 15, 4, 8, dtype=">f4"), moc.ShapeError, f"{FLOATS}float32 in the other one. {HINT}"),
}  # fmt: skip


#: The call that takes each argument, and the name of its function.
CALLS: dict[str, tuple[str, str]] = {
    "q": ("attention", "attention"),
    "k": ("attention", "attention"),
    "v": ("attend", "attend"),
    "d_out": ("grads", "attention_grads"),
    "d_lse": ("grads", "attention_grads"),
    "centroids": ("route", "route"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("argument", CALLS)
def test_an_array_of_the_wrong_kind(name: str, argument: str, calls: Any, text_of: Any) -> None:
    value, kind, rest = KINDS[name]
    if argument in ("d_lse", "centroids") and value is None:
        return  # there None stands for "not given"
    call, function = CALLS[argument]
    given = {argument: value} | ({"k": None} if argument == "centroids" else {})
    assert text_of(kind, lambda: getattr(calls, call)(**given)) == f"{function}: `{argument}` {rest}"


class Tensor:
    """An array of a library that is not served."""

    def __repr__(self) -> str:
        return "array([1.0])"


Tensor.__module__ = "mlx.core"


def test_arrays_of_other_libraries(calls: Any, text_of: Any) -> None:
    got = "array([1.0]) (Tensor). Hint: pass numpy.asarray(array)."
    rest = f"must be a NumPy, CuPy or JAX array or a torch tensor, got {got}"
    assert text_of(moc.UnsupportedError, lambda: calls.attention(k=Tensor())) == f"attention: `k` {rest}"
    text = text_of(moc.UnsupportedError, lambda: calls.attention(key_lengths=Tensor()))
    assert text == f"attention: `key_lengths` {rest}"
    assert text_of(moc.UnsupportedError, lambda: calls.grads(d_lse=Tensor())) == f"attention_grads: `d_lse` {rest}"


@pytest.mark.parametrize("library", ["torch", "jax", "cupy"])
def test_arrays_of_two_libraries(library: str, calls: Any, text_of: Any) -> None:
    # A class that says where it comes from stands for the library, which need not be here.
    array = type("Array", (), {"__module__": f"{library}.core"})()
    text = f"all arrays must come from one library, got `q` from numpy, `k` from {library}, `v` from numpy."
    assert text_of(moc.ShapeError, lambda: calls.attention(k=array)) == f"attention: {text}"


def halves(calls: Any) -> dict[str, Any]:
    given = {"q": calls.Q, "k": calls.K, "v": calls.V, "d_out": calls.OUT}
    return {name: x.astype(np.float16) for name, x in given.items()}


RANK = "must have rank 4 (batch, tokens, heads, head_dim), or 3 for a packed batch, got rank "

#: A call; the exception; the text. One entry for each way to be wrong.
CASES: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "rank 2": (
        lambda c: c.attention(q=zeros(15, 8)), moc.ShapeError, f"attention: `q` {RANK}2 with shape (15, 8).",
    ),
    "unlike ranks": (
        lambda c: c.attention(k=c.PK), moc.ShapeError, "attention: `k` must have the rank of the others, 4, got 3.",
    ),
    "no tokens": (
        lambda c: c.attention(k=zeros(2, 0, 2, 8)), moc.ShapeError,
        "attention: `k` must have no axis of size 0, got shape (2, 0, 2, 8).",
    ),
    "no batch": (
        lambda c: c.attention(q=zeros(0, 15, 4, 8)), moc.ShapeError,
        "attention: `q` must have no axis of size 0, got shape (0, 15, 4, 8).",
    ),
    "no head_dim": (
        lambda c: c.attention(v=zeros(2, 15, 2, 0)), moc.ShapeError,
        "attention: `v` must have no axis of size 0, got shape (2, 15, 2, 0).",
    ),
    "batch": (
        lambda c: c.attention(k=zeros(3, 15, 2, 8)), moc.ShapeError,
        "attention: `k` must have shape (batch, tokens, heads, head_dim) = (2, 15, 2, 8), got (3, 15, 2, 8). "
        "batch and head_dim come from `q`, whose shape is (2, 15, 4, 8).",
    ),
    "head_dim": (
        lambda c: c.attention(k=zeros(2, 15, 2, 7)), moc.ShapeError,
        "attention: `k` must have shape (batch, tokens, heads, head_dim) = (2, 15, 2, 8), got (2, 15, 2, 7). "
        "batch and head_dim come from `q`, whose shape is (2, 15, 4, 8).",
    ),
    "head_dim, heads first": (
        lambda c: c.attention(q=zeros(2, 4, 15, 8), k=zeros(2, 2, 15, 7), v=zeros(2, 2, 15, 6), axes="bhsd"),
        moc.ShapeError,
        "attention: `k` must have shape (batch, heads, tokens, head_dim) = (2, 2, 15, 8), got (2, 2, 15, 7). "
        "batch and head_dim come from `q`, whose shape is (2, 4, 15, 8).",
    ),
    "packed head_dim": (
        lambda c: c.packed(k=zeros(30, 2, 7)), moc.ShapeError,
        "attention: `k` must have shape (tokens, heads, head_dim) = (30, 2, 8), got (30, 2, 7). "
        "batch and head_dim come from `q`, whose shape is (30, 4, 8).",
    ),
    "heads": (
        lambda c: c.attention(q=zeros(2, 15, 3, 8)), moc.ShapeError,
        "attention: `q` must have a multiple of the heads of `k`, got 3 and 2. "
        "Query head h reads key head h // (H_q / H_kv).",
    ),
    "values": (
        lambda c: c.attention(v=zeros(2, 14, 2, 6)), moc.ShapeError,
        "attention: `v` must have shape (batch, tokens, heads, head_dim) = (2, 15, 2, 6), got (2, 14, 2, 6). "
        "All but head_dim come from `k`, whose shape is (2, 15, 2, 8).",
    ),
    "axes": (
        lambda c: c.attention(axes="bsdh"), moc.ShapeError,
        "attention: axes must be \"bshd\" or \"bhsd\", got 'bsdh' (str). Did you mean \"bshd\"?",
    ),
    "axes of another kind": (
        lambda c: c.pool(axes=["bshd"]), moc.ShapeError,
        "pool: axes must be \"bshd\" or \"bhsd\", got ['bshd'] (list).",
    ),
    "dtypes": (
        lambda c: c.attention(k=c.K.astype(np.float16)), moc.ShapeError,
        "attention: all arrays must have one dtype, got `q` float32, `k` float16, `v` float32.",
    ),
    "dtype of d_out": (
        lambda c: c.grads(d_out=c.OUT.astype(np.float64)), moc.ShapeError,
        "attention_grads: all arrays must have one dtype, got `q` float32, `k` float32, `v` float32, `d_out` float64.",
    ),
    "shape of d_out": (
        lambda c: c.grads(d_out=zeros(2, 15, 4, 8)), moc.ShapeError,
        "attention_grads: `d_out` must have shape (batch, tokens, heads, head_dim) = (2, 15, 4, 6), got "
        "(2, 15, 4, 8). It has the shape of out: that of `q` with v's head_dim.",
    ),
    "shape of d_lse": (
        lambda c: c.grads(d_lse=zeros(2, 15, 4)), moc.ShapeError,
        "attention_grads: `d_lse` must be float32 (2, 4, 15), as lse is, got float32 (2, 15, 4).",
    ),
    "dtype of d_lse": (
        lambda c: c.grads(**halves(c), d_lse=c.LSE.astype(np.float16)), moc.ShapeError,
        "attention_grads: `d_lse` must be float32 (2, 4, 15), as lse is, got float16 (2, 4, 15).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str, calls: Any, text_of: Any) -> None:
    call, kind, text = CASES[name]
    assert text_of(kind, lambda: call(calls)) == text


@pytest.mark.parametrize("number", [99, -2])
def test_a_layout_of_chunks_that_are_not_there(backend: str, number: int) -> None:
    """A stale layout must not make kernels read beyond the keys."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 24, 2, 4), np.float32)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=1)
    layout = moc.route(q, k, spec, backend=backend)
    stale = replace(layout, selected=np.full_like(layout.selected, number))
    rule = "must hold chunk numbers < 4" if number > 0 else "must hold chunk numbers, or -1 for none"
    with pytest.raises(moc.LayoutError) as raised:
        [moc.attend(q, k, v, one, backend=backend) for one in (stale, layout)]  # a GPU's kernels: at the next call
    told = str(raised.value)
    if told.startswith("attend on "):
        assert re.search(rf"must hold chunks of the plan or -1, got chunk {number} in row \d+", told)
        return
    assert told == (
        f"Layout: selected[0, 0, 0] {rule}, got [{number}]. 48 rows break this rule. "
        "Hint: make layouts with sparsemoc.route."
    )

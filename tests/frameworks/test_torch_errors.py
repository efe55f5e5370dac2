"""Tensors of the wrong kind, dtype, device or library: the exception and its whole text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Small

torch = pytest.importorskip("torch", reason="tensors need torch")

FLOATS = "must be float16, bfloat16, float32, float64, got "
DENSE = "must be a dense, strided tensor, got "
TO_DENSE = "Hint: tensor.to_dense(), or for samples of unlike length a packed batch."

#: What is done to q; the text after "attention: `q` ".
KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "integers": (lambda q: q.int(), f"{FLOATS}int32. Hint: tensor.float()."),
    "booleans": (lambda q: q > 0, f"{FLOATS}bool. Hint: tensor.float()."),
    "complex": (lambda q: q.cfloat(), f"{FLOATS}complex64. Hint: tensor.float()."),
    "conjugate": (lambda q: q.cfloat().conj(), f"{FLOATS}complex64. Hint: tensor.float()."),
    "float8": (lambda q: q.to(torch.float8_e4m3fn), f"{FLOATS}float8_e4m3fn. Hint: tensor.float()."),
    "quantized": (
        lambda q: torch.quantize_per_tensor(q, 0.1, 0, torch.qint8), f"{FLOATS}qint8. Hint: tensor.float().",
    ),
    "sparse": (lambda q: q.to_sparse(), f"{DENSE}sparse_coo. {TO_DENSE}"),
    "nested": (
        lambda q: torch.nested.nested_tensor([q[0], q[1]], layout=torch.jagged), f"{DENSE}a nested tensor. {TO_DENSE}",
    ),
    "negated": (
        lambda q: torch.complex(q, q).conj().imag,
        "must hold its values, got a view whose sign is yet to be turned. Hint: tensor.resolve_neg().",
    ),
    "a device": (lambda q: q.device, "must be a torch tensor, got device(type='cpu') (device)."),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch is about to drop them
@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_of_the_wrong_kind(name: str, small: Small) -> None:
    change, rest = KINDS[name]
    q, k, v = small.qkv()
    with pytest.raises(moc.ShapeError) as raised:
        moc.attention(change(q), k, v, small.SPEC, backend="reference")
    assert str(raised.value) == f"attention: `q` {rest}"


def attention(s: Small, q: Any = None, k: Any = None, v: Any = None, **options: Any) -> Any:
    q, k, v = (x if x is not None else y for x, y in zip((q, k, v), s.qkv(), strict=True))
    return moc.attention(q, k, v, s.SPEC, backend="reference", **options)


def grads(s: Small, d_out: Any = None, **options: Any) -> Any:
    return moc.attention_grads(*s.qkv(), s.SPEC, s.d_out() if d_out is None else d_out, backend="reference", **options)


def dropped(s: Small, seed: Any) -> Any:
    return moc.route(*s.qkv()[:2], s.DROPOUT, training=True, seed=seed, backend="reference")


SEED = "route: seed must be a whole number or a 0-d integer array, got "

#: A call; the exception; the text.
CASES: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "a scale that is trained": (
        lambda s: attention(s, scale=torch.tensor(0.3, requires_grad=True)), moc.SpecError,
        "attention: scale must be a number that asks for no gradient, got a tensor that does. "
        "Hint: multiply q by it instead.",
    ),
    "two libraries": (
        lambda s: attention(s, k=s.numpy(s.qkv()[1])), moc.ShapeError,
        "attention: all arrays must come from one library, got `q` from torch, `k` from numpy, `v` from torch.",
    ),
    "two devices": (
        lambda s: attention(s, v=s.qkv()[2].to("meta")), moc.ShapeError,
        "attention: all arrays must have one device, got `q` cpu, `k` cpu, `v` meta.",
    ),
    "two dtypes": (
        lambda s: attention(s, v=s.qkv()[2].bfloat16()), moc.ShapeError,
        "attention: all arrays must have one dtype, got `q` float32, `k` float32, `v` bfloat16.",
    ),
    "d_out of the other library": (
        lambda s: grads(s, d_out=s.numpy(s.d_out())), moc.ShapeError,
        "attention_grads: all arrays must come from one library, got `q` from torch, `k` from torch, `v` from torch, "
        "`d_out` from numpy.",
    ),
    "d_lse of the other library": (
        lambda s: grads(s, d_lse=s.numpy(s.d_lse())), moc.ShapeError,
        "attention_grads: all arrays must come from one library, got `q` from torch, `d_lse` from numpy.",
    ),
    "d_lse on another device": (
        lambda s: grads(s, d_lse=s.d_lse().to("meta")), moc.ShapeError,
        "attention_grads: all arrays must have one device, got `q` cpu, `d_lse` meta.",
    ),
    "d_lse of another dtype": (
        lambda s: grads(s, d_lse=s.d_lse().double()), moc.ShapeError,
        "attention_grads: `d_lse` must be float32 (2, 4, 42), as lse is, got float64 (2, 4, 42).",
    ),
    "centroids of the other library": (
        lambda s: moc.route(s.qkv()[0], None, s.SPEC, centroids=np.zeros((2, 2, 9, 8), np.float32)), moc.ShapeError,
        "route: all arrays must come from one library, got `q` from torch, `centroids` from numpy.",
    ),
    "key_lengths of floats": (
        lambda s: attention(s, key_lengths=torch.zeros(2, 5)), moc.ShapeError,
        "attention: `key_lengths` must be an integer tensor, got dtype float32. Hint: tensor.to(torch.int32).",
    ),
    "key_lengths of booleans": (
        lambda s: attention(s, key_lengths=torch.ones(2, 5, dtype=torch.bool)), moc.ShapeError,
        "attention: `key_lengths` must be an integer tensor, got dtype bool. Hint: tensor.to(torch.int32).",
    ),
    "key_lengths of another shape": (
        lambda s: attention(s, key_lengths=torch.ones(2, 4, dtype=torch.int32)), moc.ShapeError,
        "attention: `key_lengths` must have shape (batch, segments) = (2, 5), got (2, 4). "
        "It holds the valid tokens of each segment.",
    ),
    "a seed of floats": (
        lambda s: dropped(s, torch.tensor(1.0)), moc.SpecError, f"{SEED}tensor(1.) (Tensor). Hint: seed=0.",
    ),
    "a seed of booleans": (
        lambda s: dropped(s, torch.tensor(True)), moc.SpecError, f"{SEED}tensor(True) (Tensor). Hint: seed=0.",
    ),
    "a seed of rank 1": (
        lambda s: dropped(s, torch.tensor([1])), moc.SpecError, f"{SEED}tensor([1]) (Tensor). Hint: seed=0.",
    ),
    "rank": (
        lambda s: attention(s, q=torch.zeros(42, 8)), moc.ShapeError,
        "attention: `q` must have rank 4 (batch, tokens, heads, head_dim), or 3 for a packed batch, "
        "got rank 2 with shape (42, 8).",
    ),
    "shape": (
        lambda s: attention(s, k=torch.zeros(3, 42, 2, 8)), moc.ShapeError,
        "attention: `k` must have shape (batch, tokens, heads, head_dim) = (2, 42, 2, 8), got (3, 42, 2, 8). "
        "batch and head_dim come from `q`, whose shape is (2, 42, 4, 8).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str, small: Small) -> None:
    call, kind, text = CASES[name]
    with pytest.raises(moc.SparsemocError) as raised:
        call(small)
    assert type(raised.value) is kind
    assert str(raised.value) == text

"""Torch tensors on the CPU give the bits of NumPy arrays, in the same memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import conformance

if TYPE_CHECKING:
    from tests.frameworks.conftest import Small, Telling

torch = pytest.importorskip("torch", reason="tensors need torch")

DTYPES = ("float16", "bfloat16", "float32", "float64")


def check_all(backend: str, small: Small, arrays: list[Any], spec: Any, **options: Any) -> None:
    """Every public function gives the bits that it gives for NumPy arrays in the same memory."""
    q, k, v, d_out, d_lse = arrays
    nq, nk, nv, nd_out, nd_lse = (small.numpy(x) for x in arrays)
    common: dict[str, Any] = {**options, "backend": backend}
    found = moc.attention(q, k, v, spec, **common, return_lse=True, return_layout=True)
    expected = moc.attention(nq, nk, nv, spec, **common, return_lse=True, return_layout=True)
    small.same(found[0], expected[0])
    small.same(found[1], expected[1])
    small.same(found[2].selected, expected[2].selected)
    small.same(moc.route(q, k, spec, **common).selected, expected[2].selected)
    axes = options.get("axes", "bshd")
    again = moc.attend(q, k, v, found[2], axes=axes, backend=backend, return_lse=True)
    small.same(again[0], expected[0])
    small.same(again[1], expected[1])
    grads = moc.attention_grads(q, k, v, spec, d_out, d_lse=d_lse, **common)
    for grad, wanted in zip(grads, moc.attention_grads(nq, nk, nv, spec, nd_out, d_lse=nd_lse, **common), strict=True):
        small.same(grad, wanted)
    lengths, plan = options.get("key_lengths"), expected[2].plan
    small.same(
        moc.pool(k, plan, key_lengths=lengths, axes=axes, backend=backend),
        moc.pool(nk, plan, key_lengths=lengths, axes=axes, backend=backend),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_the_bits_of_numpy(backend: str, small: Small, dtype: str, axes: str) -> None:
    arrays = [*small.qkv(dtype), small.d_out(dtype)]
    turned = [x.transpose(1, 2).contiguous() if axes == "bhsd" else x for x in arrays]
    check_all(backend, small, [*turned, small.d_lse(dtype)], small.SPEC, axes=axes, key_lengths=small.LENGTHS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_packed(backend: str, small: Small, dtype: str, axes: str) -> None:
    streams = (small.STREAM, moc.Stream((moc.Segment("video", 13),)))
    shapes = ((55, 4, 8), (55, 2, 8), (55, 2, 5), (55, 4, 5))
    arrays = [small.draw(*shape, dtype=dtype) for shape in shapes]
    turned = [x.transpose(0, 1) if axes == "bhsd" else x for x in arrays]
    d_lse = small.draw(4, 55, dtype="float64" if dtype == "float64" else "float32")
    check_all(backend, small, [*turned, d_lse], small.FREE, axes=axes, stream=streams)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_any_strides(backend: str, small: Small, dtype: str) -> None:
    arrays = [*small.qkv(dtype), small.d_out(dtype)]
    wide = [torch.stack([x, torch.full_like(x, float("nan"))], dim=-1)[..., 0] for x in arrays]
    assert not any(x.is_contiguous() for x in wide)
    check_all(backend, small, [*wide, small.d_lse(dtype)], small.SPEC)
    broadcast = [x[:, :, :1].expand(x.shape) for x in arrays]
    check_all(backend, small, [*broadcast, small.d_lse(dtype)], small.SPEC)


def test_nothing_is_copied(telling: Telling, small: Small) -> None:
    q, k, v = small.qkv("bfloat16")
    out, lse, layout = moc.attention(
        q, k, v, small.SPEC, key_lengths=small.LENGTHS, backend=telling, return_lse=True, return_layout=True
    )
    for given, tensor in zip(telling.given["attend"][1:4], (q, k, v), strict=True):
        assert isinstance(given, np.ndarray)
        assert np.shares_memory(given, small.numpy(tensor))
    for gave, tensor in zip(telling.gave["attend"], (out, lse), strict=True):
        assert np.shares_memory(gave, small.numpy(tensor))
    shown = telling.given["attend"][4]
    assert np.shares_memory(shown.selected, telling.gave["route"])
    assert np.shares_memory(shown.selected, small.numpy(layout.selected))
    assert np.shares_memory(shown.key_lengths, small.numpy(layout.key_lengths))
    problem = telling.given["attend"][0]
    assert (problem.framework, problem.device, problem.dtype) == ("numpy", "cpu", "bfloat16")


def test_a_parameter_is_a_tensor(backend: str, small: Small) -> None:
    q, k, v = small.qkv()
    found = moc.attention(torch.nn.Parameter(q), k, v, small.SPEC, backend=backend)
    assert torch.equal(found, moc.attention(q, k, v, small.SPEC, backend=backend))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int32", "int64"])
def test_key_lengths_of_every_kind(backend: str, small: Small, dtype: str) -> None:
    q, k, _ = small.qkv()
    expected = moc.route(q, k, small.SPEC, key_lengths=small.LENGTHS, backend=backend)
    lengths = torch.tensor(small.LENGTHS).to(getattr(torch, dtype))
    for given in (lengths, small.numpy(lengths), lengths.tolist()):
        found = moc.route(q, k, small.SPEC, key_lengths=given, backend=backend)
        assert torch.equal(found.selected, expected.selected)
        assert found.key_lengths.dtype is torch.int32
        assert found.key_lengths.tolist() == lengths.tolist()
    of_numpy = moc.route(small.numpy(q), small.numpy(k), small.SPEC, key_lengths=lengths, backend=backend)
    assert isinstance(of_numpy.key_lengths, np.ndarray)
    small.same(expected.selected, of_numpy.selected)


def test_key_lengths_clamp(backend: str, small: Small) -> None:
    q, k, _ = small.qkv()
    lengths = torch.tensor([[2**40] * 5, [-(2**40)] * 5])
    found = moc.route(q, k, small.SPEC, key_lengths=lengths, backend=backend).key_lengths
    assert found.tolist() == [[2**31 - 1] * 5, [0] * 5]
    assert lengths[0, 0] == 2**40


def test_seeds_of_every_kind(backend: str, small: Small) -> None:
    q, k, _ = small.qkv()
    options: dict[str, Any] = {"training": True, "backend": backend}
    expected = moc.route(small.numpy(q), small.numpy(k), small.DROPOUT, seed=7, **options).selected
    seeds = [7, 7 - 2**64, np.uint8(7), np.array(7)]
    seeds += [torch.tensor(7, dtype=kind) for kind in (torch.uint8, torch.int32, torch.int64, torch.uint64)]
    for seed in seeds:
        small.same(moc.route(q, k, small.DROPOUT, seed=seed, **options).selected, expected)
    negative = moc.route(q, k, small.DROPOUT, seed=torch.tensor(-5), **options).selected
    assert torch.equal(negative, moc.route(q, k, small.DROPOUT, seed=-5, **options).selected)
    assert not torch.equal(negative, torch.from_numpy(expected))
    of_numpy = moc.route(small.numpy(q), small.numpy(k), small.DROPOUT, seed=torch.tensor(7), **options).selected
    np.testing.assert_array_equal(of_numpy, expected)


def test_centroids(backend: str, small: Small) -> None:
    q, k, _ = small.qkv()
    centroids = moc.pool(k, moc.plan(small.SPEC), backend=backend)
    found = moc.route(q, None, small.SPEC, centroids=centroids, backend=backend)
    assert torch.equal(found.selected, moc.route(q, k, small.SPEC, backend=backend).selected)


def test_a_layout_of_the_other_library(backend: str, small: Small) -> None:
    q, k, v = small.qkv()
    nq, nk, nv = (small.numpy(x) for x in (q, k, v))
    options: dict[str, Any] = {"key_lengths": small.LENGTHS, "backend": backend}
    layout, other = moc.route(q, k, small.SPEC, **options), moc.route(nq, nk, small.SPEC, **options)
    expected = moc.attend(nq, nk, nv, other, backend=backend)
    small.same(moc.attend(q, k, v, other, backend=backend), expected)
    np.testing.assert_array_equal(moc.attend(nq, nk, nv, layout, backend=backend), expected)
    frozen = replace(other, selected=np.flip(np.flip(other.selected, 2).copy(), 2))  # a negative stride, and no writing
    frozen.selected.flags.writeable = False
    small.same(moc.attend(q, k, v, frozen, backend=backend), expected)


def test_what_a_layout_of_tensors_says(backend: str, small: Small) -> None:
    q, k, _ = small.qkv()
    layout = moc.route(q, k, small.SPEC, key_lengths=small.LENGTHS, backend=backend)
    other = layout.on_host()
    assert isinstance(layout.selected, torch.Tensor)
    assert isinstance(other.selected, np.ndarray)
    assert other.on_host() is other
    layout.validate()
    assert (layout.pairs(), layout.density(), layout.flops(8)) == (other.pairs(), other.density(), other.flops(8))
    np.testing.assert_array_equal(layout.dense_mask(), other.dense_mask())
    np.testing.assert_array_equal(layout.report().chunk_load, other.report().chunk_load)
    for found, expected in zip(vars(layout.chunk_major()).values(), vars(other.chunk_major()).values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(layout.run_on()[0], other.run_on()[0])
    assert torch.equal(layout.to_block_mask(16).kv_indices, other.to_block_mask(16).kv_indices)
    assert "Layout(batch=2, heads=4" in repr(layout)


def test_what_is_wrong_with_a_layout_of_tensors(small: Small, backend: str) -> None:
    q, k, v = small.qkv()
    layout = moc.route(q, k, small.SPEC, backend=backend)
    with pytest.raises(moc.LayoutError, match=r"selected must be int32 .*, got int64 \(2, 4, 42, 2\)\.$"):
        replace(layout, selected=layout.selected.long())
    with pytest.raises(moc.LayoutError, match=r"key_lengths must be int32 .* = \(2, 5\), got float32 \(2, 5\)\.$"):
        replace(layout, key_lengths=torch.zeros(2, 5))
    wrong = replace(layout, selected=torch.full_like(layout.selected, 99))
    with pytest.raises(moc.LayoutError, match="must hold chunk numbers < "):
        wrong.validate()
    with pytest.raises(moc.LayoutError, match="must hold chunk numbers < "):
        moc.attend(q, k, v, wrong, options=moc.Options(checked=True), backend=backend)


@pytest.mark.parametrize("name", ["selection", "forward", "backward", "dropout", "padding", "presentation", "pool"])
def test_conformance_in_tensors(backend: str, name: str) -> None:
    conformance.PROPERTIES[name].run(backend, examples=10, framework="torch", device="cpu")

"""CuPy arrays for a backend that takes tensors: the same memory, on one stream, and results that are CuPy's again."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from tests.backends.cupy.fake_arrays import READS, Stream
from tests.backends.cupy.fake_cupy import installed
from tests.frameworks.cupy_problem import DEVICE, DROPOUT, LENGTHS, SPEC, OnCupy, OnTorch, bits, numpy_arrays, put, same

torch = pytest.importorskip("torch", reason="tensors need torch")


@pytest.fixture
def cupy_module() -> Iterator[Any]:
    with installed():
        yield importlib.import_module("sparsemoc.frameworks.cupy")


@pytest.fixture
def streams(cupy_module: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let torch have CUDA; tell the streams that it is set to."""
    told: list[str] = []

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        told.append(name)
        yield

    monkeypatch.setattr(cupy_module, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(cupy_module, "_on_gpu", lambda array: isinstance(array, torch.Tensor))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: f"default of {device}")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, device: f"{pointer} of {device}")
    return told


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_backend_for_tensors_serves_them(streams: list[str], dtype: str) -> None:
    backend, arrays = OnTorch(), numpy_arrays(dtype)
    q, k, v, d_out = (put(array) for array in arrays.values())
    given: dict[str, Any] = {"key_lengths": LENGTHS, "training": True}
    out, layout = moc.attention(q, k, v, DROPOUT, return_layout=True, seed=put(np.array(7)), backend=backend, **given)
    found = (out, layout.selected, *moc.attention_grads(q, k, v, DROPOUT, d_out, seed=7, backend=backend, **given))
    given |= {"seed": 7, "backend": "reference"}
    own_q, own_k, own_v, own_d_out = arrays.values()
    out, layout = moc.attention(own_q, own_k, own_v, DROPOUT, return_layout=True, **given)
    expected = (out, layout.selected, *moc.attention_grads(own_q, own_k, own_v, DROPOUT, own_d_out, **given))
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    assert set(streams) == {f"default of {DEVICE}"}
    problem, *tensors = backend.given["attend"][:4]
    assert (problem.framework, problem.views) == ("torch", ("torch",))
    assert [x.data_ptr() for x in tensors] == [x.memory.ctypes.data for x in (q, k, v)]
    assert {str(x.dtype) for x in tensors} == {f"torch.{dtype}"}


def test_a_seed_on_the_device_is_shown_too(streams: list[str]) -> None:
    backend, arrays = OnTorch(), numpy_arrays()
    READS.clear()
    seed = put(np.array(7))
    moc.route(put(arrays["q"]), put(arrays["k"]), DROPOUT, training=True, seed=seed, backend=backend)
    assert not READS
    shown = backend.given["route"][4].seed
    assert isinstance(shown, torch.Tensor)
    assert (shown.dtype, shown.ndim, shown.item()) == (torch.int64, 0, 7)


def test_what_runs_backwards_is_copied(cupy_module: Any) -> None:
    """Tensors have no negative strides."""
    array = put(np.arange(6.0).reshape(2, 3), 0)[:, ::-1]
    shown = cupy_module.show(array, "torch")
    assert shown.tolist() == [[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]]
    assert cupy_module.show(array, "cupy") is array


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_a_tensor_on_a_gpu_becomes_cupys_without_a_copy(cupy_module: Any, dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))

    class OnGpu:
        """The tensor, as if it lay on a GPU."""

        def __init__(self, tensor: Any) -> None:
            self.tensor, self.dtype = tensor, tensor.dtype

        def view(self, dtype: Any) -> OnGpu:
            return OnGpu(self.tensor.view(dtype))

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, DEVICE

        def __dlpack__(self, **given: Any) -> Any:
            return self.tensor.__dlpack__()

    found = cupy_module.own(OnGpu(tensor), put(np.zeros(1)))
    same(found, tensor.float().numpy().astype(np.dtype(dtype)))
    assert found.memory.ctypes.data == tensor.data_ptr()


def test_streams_of_cupy_are_torchs(streams: list[str]) -> None:
    arrays = numpy_arrays()
    q, k = put(arrays["q"]), put(arrays["k"])
    for pointer in (0, 1, 2, 4096):  # the default one by its two numbers, the thread's own, one that was made
        with Stream(pointer):
            moc.route(q, k, SPEC, backend=OnTorch())
    assert streams == [name for one in ("default", "default", "2", "4096") for name in [f"{one} of 1"] * 2]


def test_a_backend_for_cupy_leaves_torch_alone(streams: list[str]) -> None:
    arrays = numpy_arrays()
    backend = OnCupy()
    bits(moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, backend=backend).selected)
    assert backend.given["route"][0].views == ("torch",)
    assert not streams


def test_torch_with_cuda_is_told_without_loading_it(cupy_module: Any) -> None:
    assert cupy_module._torch_has_cuda() == (torch.version.cuda is not None)


def test_without_torch_there_is_no_view(cupy_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_module, "find_spec", lambda name: None)
    assert cupy_module.views(put(np.zeros(1))) == ()
    arrays = numpy_arrays()
    with pytest.raises(
        moc.UnsupportedError, match=r'backend "on_torch" takes torch arrays, not cupy \(float32 on cuda'
    ):
        moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, backend=OnTorch())


def test_a_block_mask_lies_where_the_layout_does(cupy_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsemoc.spec import blockmask

    arrays = numpy_arrays()
    layout = moc.route(put(arrays["q"]), put(arrays["k"]), SPEC, backend=OnCupy())
    assert blockmask._device_of(layout.selected) == "cuda:1"
    mask = layout.to_block_mask(16, device="cpu")
    other = moc.route(arrays["q"], arrays["k"], SPEC, backend="reference").to_block_mask(16)
    assert torch.equal(mask.kv_indices, other.kv_indices)
    assert torch.equal(mask.full_kv_num_blocks, other.full_kv_num_blocks)

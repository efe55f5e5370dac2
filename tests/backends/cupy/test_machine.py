"""Kernels on the emulated machine and on a CUDA machine over a stand-in for CuPy: what arrives, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sparsemoc.backends.cupy import cuda, host_compiler
from sparsemoc.backends.cupy.arrays import TorchArrays
from sparsemoc.backends.cupy.cuda import CudaMachine
from sparsemoc.backends.cupy.emulator import EmulatedMachine
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel, Machine, kernel, machine_of, strides_of
from sparsemoc.backends.cupy.shared import tile_bytes
from sparsemoc.spec.host import host
from tests.backends.cupy.fake_cupy import installed

TINY = str(Path(__file__).with_name("tiny"))
ON_FLOATS: dict[str, Any] = {"ELEMENT": "float", "SCALE": 3, "threads": 64}
SCALE = kernel(TINY, "scale", **ON_FLOATS)
ECHO = kernel(TINY, "echo", **ON_FLOATS)
SUMS = kernel(TINY, "block_sums", **ON_FLOATS, shared=256)
WORDS = {"a": -5, "b": 2**32 - 1, "c": 2**64 - 1, "d": -(2**63), "e": 1.5, "nothing": None}


@pytest.fixture
def cupy() -> Iterator[Any]:
    with installed() as module:
        yield module


@pytest.fixture(params=["numpy", "torch", "cupy"])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "cupy":
        request.getfixturevalue("cupy")
        return CudaMachine("cupy", 1)
    if request.param == "torch":
        pytest.importorskip("torch", reason="tensors are torch's")
    return EmulatedMachine(request.param)


def test_a_kernel_has_its_constants_in_one_order() -> None:
    made = kernel(
        "routed", "attend", threads=64, shared=1024, blocks_per_sm=2, VALUE_BLOCK=64, ELEMENT="half_t", ON=True
    )
    assert made == Kernel("routed", "attend", (("ELEMENT", "half_t"), ("ON", 1), ("VALUE_BLOCK", 64)), 64, 1024, 2)
    number = made.macros.pop("SOURCE_NUMBER")
    assert made.macros == {
        "ELEMENT": "half_t", "ON": 1, "VALUE_BLOCK": 64,
        "THREADS": 64, "SHARED_BYTES": 1024, "BLOCKS_PER_SM": 2, "SOURCE_NUMBER": number,
    }  # fmt: skip


def test_kernels_compute_on_arrays_of_any_stride(machine: Machine) -> None:
    x = machine.upload(np.arange(200, dtype=np.float32))[:: -1 if machine != EmulatedMachine("torch") else 1][::2]
    y = machine.zeros((100,), "float32")
    assert machine_of(y) == machine
    machine.launch(SCALE, (2, 1, 1), x=x, y=y, n=99, stride_x=machine.strides(x)[0], a=0.5)
    expected = np.append(3 * host(x)[:99] + np.float32(0.5), 0)
    np.testing.assert_array_equal(host(y), expected)


def test_blocks_share_memory_and_lie_along_three_axes(machine: Machine) -> None:
    x = np.random.default_rng(0).integers(0, 1000, (24, 64), np.int32)
    out = machine.zeros((24,), "int32")
    machine.launch(SUMS, (2, 3, 4), x=machine.upload(x), out=out)
    np.testing.assert_array_equal(host(out), x.sum(1))


def test_every_type_arrives_whole(machine: Machine) -> None:
    words = machine.zeros((5,), "int64")
    machine.launch(ECHO, (1, 1, 1), words=words, **WORDS)
    found = host(words).view(np.uint64).tolist()
    assert found == [2**64 - 5, 2**32 - 1, 2**64 - 1, 2**63, int(np.float32(1.5).view(np.uint32))]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"a": 2**31}, r"echo of .*tiny.cu: int a must be within \[-2147483648, 2147483647\], got 2147483648 \(int\)"),
        ({"b": -1}, r"u32 b must be within \[0, 4294967295\], got -1 \(int\)"),
        ({"c": 2**64}, "u64 c must be within"),
        ({"d": 1.0}, r"i64 d must be a whole number, got 1.0 \(float\)"),
        ({"e": "1"}, "float e must be a number, got '1'"),
        ({"words": 3}, r"u64\* words must be an array of NumpyArrays\(\), or None, got 3 \(int\)"),
        ({"f": 3, "g": 4}, "launch: echo of .*tiny.cu does not take f, g."),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], text: str) -> None:
    given = {"words": np.zeros(5, np.uint64), **WORDS, **wrong}
    with pytest.raises(KernelError, match=text):
        EmulatedMachine("numpy").launch(ECHO, (1, 1, 1), **given)


def test_missing_arguments_are_named_beside_unknown_ones() -> None:
    with pytest.raises(KernelError, match=r"tiny\.cu lacks a, nothing and does not take z"):
        EmulatedMachine("numpy").launch(ECHO, (1, 1, 1), words=None, b=1, c=1, d=1, e=1, z=1)


def test_a_grid_without_blocks_runs_nothing_and_too_large_a_one_is_refused(machine: Machine) -> None:
    given = {"x": None, "y": None, "n": 1, "stride_x": 1, "a": 1}  # a run would read at address 0
    machine.launch(SCALE, (1, 0, 1), **given)
    with pytest.raises(KernelError, match=r"grid of scale .* must be within .*65535\), got \(1, 65536, 1\)"):
        machine.launch(SCALE, (1, 65536, 1), **given)


def test_an_array_of_another_machine_is_refused(cupy: Any) -> None:
    with cupy.cuda.Device(1):
        y = cupy.zeros((64,), np.float32)
    assert machine_of(y) == CudaMachine("cupy", 1)
    assert machine_of(y[3:]) == CudaMachine("cupy", 1)
    with pytest.raises(KernelError, match=r"ELEMENT\* x must be an array of CupyArrays\(index=0\)"):
        CudaMachine("cupy", 0).launch(SCALE, (1, 1, 1), x=y, y=y, n=1, stride_x=1, a=1)
    with pytest.raises(KernelError, match="arrays must be of CuPy, torch or NumPy, got"):
        machine_of([1.0])


@pytest.mark.parametrize(
    ("shape", "axes", "part", "dtype", "aligned"),
    [
        ((2, 3, 8), (0, 1, 2), np.s_[:], "float32", True),
        ((2, 3, 8), (1, 0, 2), np.s_[:], "float32", True),
        ((2, 3, 8), (0, 2, 1), np.s_[:], "float32", False),
        ((2, 3, 8), (0, 1, 2), np.s_[..., 4:], "float32", True),
        ((2, 3, 8), (0, 1, 2), np.s_[..., 2:], "float32", False),
        ((2, 3, 8), (0, 1, 2), np.s_[..., 2:6], "float32", False),
        ((2, 3, 8), (0, 1, 2), np.s_[..., :4], "bfloat16", False),
        ((2, 3, 8), (0, 1, 2), np.s_[:], "bfloat16", True),
        ((2, 3, 9), (0, 1, 2), np.s_[..., :8], "float32", False),
        ((1, 1, 9), (0, 1, 2), np.s_[..., :8], "float32", True),
    ],
)
def test_rows_are_aligned_where_16_bytes_can_be_copied(
    machine: Machine, shape: tuple[int, ...], axes: tuple[int, ...], part: Any, dtype: str, aligned: bool
) -> None:
    memory = machine.zeros((512,), dtype)
    x = memory[: int(np.prod(shape))].reshape(shape)
    x = (x.permute(axes) if machine == EmulatedMachine("torch") else x.transpose(axes))[part]
    assert machine.pointer(memory) % 16 == 0
    assert machine.aligned(x) is aligned
    assert machine.dtype(x) == dtype


def test_strides_are_in_elements_and_named_by_axis(machine: Machine) -> None:
    x = machine.zeros((2, 3, 4, 5), "float16")[:, ::2]
    assert strides_of(machine, "q", x) == {"stride_qb": 60, "stride_ql": 40, "stride_qh": 5, "stride_qd": 1}
    assert machine.strides(machine.contiguous(x)) == (40, 20, 5, 1)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_new_arrays_of_the_emulator_hold_nothing_that_could_pass_for_a_result(library: str) -> None:
    if library == "torch":
        pytest.importorskip("torch", reason="tensors are torch's")
    machine = EmulatedMachine(library)
    for dtype in ("float16", "bfloat16", "float32"):
        made = machine.empty((2, 3), dtype)
        assert machine.dtype(made) == dtype
        assert all(value != value for value in made.reshape(-1).tolist())
    assert set(machine.empty((4,), "int32").tolist()) == {-(2**31)}


def test_an_upload_is_a_copy_of_the_kind_asked_for(machine: Machine) -> None:
    source = np.arange(6, dtype=np.int32)
    made = machine.upload(source)
    source[:] = 0
    assert made.tolist() == [0, 1, 2, 3, 4, 5]
    assert machine_of(made) == machine


def test_the_cuda_machine_compiles_for_the_device_and_launches_on_the_current_stream(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEMOC_KERNEL_CACHE_DIR", str(tmp_path))
    machine = CudaMachine("cupy", 1)
    assert machine.capability == 90
    out, x = machine.zeros((1,), "int32"), machine.upload(np.ones(64, np.int32))
    with cupy.cuda.Stream(41):
        machine.launch(SUMS, (1, 1, 1), x=x, out=out)
    machine.launch(SUMS, (1, 1, 1), x=x, out=out)
    (first, second), (program,) = cupy.launches, cupy.cuda.nvrtc.compiled
    assert (first.stream, first.device, second.stream, second.device) == (41, 1, 0, 1)
    assert (first.grid, first.block, first.shared) == ((1, 1, 1), (64, 1, 1), 256)
    assert first.kernel.name == "block_sums"
    assert [argument.item() for argument in first.arguments] == [machine.pointer(x), machine.pointer(out)]
    assert {"--gpu-architecture=sm_90a", "-DTHREADS=64", "-DSHARED_BYTES=256", "-DELEMENT=float"} <= set(
        program["options"]
    )
    assert b"intrinsics.cuh" in program["headers"]


def test_more_than_48_kib_of_shared_memory_is_asked_for(cupy: Any) -> None:
    machine = CudaMachine("cupy", 0)
    out, x = machine.zeros((1,), "int32"), machine.upload(np.ones(64, np.int32))
    for shared in (48 << 10, 200 << 10):
        machine.launch(kernel(TINY, "block_sums", **ON_FLOATS, shared=shared), (1, 1, 1), x=x, out=out)
    assert [launch.allowed for launch in cupy.launches] == [48 << 10, 200 << 10]
    with pytest.raises(KernelError) as raised:
        machine.launch(kernel(TINY, "block_sums", **ON_FLOATS, shared=300 << 10), (1, 1, 1), x=x, out=out)
    for part in (
        "block_sums of ",
        "SHARED_BYTES=307200",
        "grid (1, 1, 1)",
        "device 0 (sm_90)",
        "INVALID_VALUE",
        "Hint:",
    ):
        assert part in str(raised.value)


def test_torch_tensors_run_on_torchs_stream(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="tensors are torch's")
    monkeypatch.setattr(cuda, "_arrays", lambda library, device: TorchArrays("cpu"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77 + device))
    x, out = torch.ones(64, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    CudaMachine("torch", 1).launch(SUMS, (1, 1, 1), x=x, out=out)
    (launch,) = cupy.launches
    assert (launch.stream, launch.device, out.item()) == (78, 1, 64)


def test_arrays_of_cupy_may_be_bfloat16(cupy: Any) -> None:
    machine = CudaMachine("cupy", 0)
    made = machine.zeros((3,), "bfloat16")
    assert made.dtype == ml_dtypes.bfloat16
    assert machine.dtype(made) == "bfloat16"


def test_a_kernel_that_breaks_a_rule_of_the_machine_says_so() -> None:
    with pytest.raises(KernelError, match=r"launch: block_sums .*grid \(1, 1, 1\): .*48 threads"):
        EmulatedMachine("numpy").launch(
            kernel(TINY, "block_sums", ELEMENT="float", SCALE=1, threads=48, shared=256),
            (1, 1, 1), x=np.zeros(64, np.int32), out=np.zeros(1, np.int32),
        )  # fmt: skip


def test_a_source_that_does_not_compile_says_where(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text('#include "machine.cuh"\nKERNEL(wrong)(int n) { int m = absent + n; }\n')
    with pytest.raises(KernelError, match=r"(?s)wrong.cu does not compile for the CPU.*-DTHREADS=32 .*absent"):
        EmulatedMachine("numpy").launch(kernel(str(tmp_path / "wrong"), "wrong", threads=32), (1, 1, 1), n=1)


@pytest.mark.parametrize(("named", "text"), [("absent -m64", "CXX=absent -m64 is not found"), ("", "none of g++")])
def test_an_absent_compiler_is_told_with_a_hint(monkeypatch: pytest.MonkeyPatch, named: str, text: str) -> None:
    monkeypatch.setenv("CXX", named)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(KernelError) as raised:
        host_compiler.compiler()
    assert text in str(raised.value)
    assert "Hint: install g++" in str(raised.value)


def test_a_tile_has_16_bytes_behind_each_row() -> None:
    assert tile_bytes(64, 128, 2) == 64 * (256 + 16)

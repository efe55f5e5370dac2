"""Kernels compiled for GPUs, without one: cubins for every architecture, and what each kernel uses there."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from sparsemoc.backends.cupy import nvrtc
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import kernel

cupy = pytest.importorskip("cupy", reason="NVRTC is called through CuPy")

try:
    VERSION = nvrtc.version()
except Exception as error:  # noqa: BLE001  it depends on how the library is absent
    pytest.skip(f"CuPy finds no NVRTC: {error}", allow_module_level=True)

TINY = str(Path(__file__).with_name("tiny"))
MACHINES = {"sm_80": 80, "sm_89": 89, "sm_90a": 90, "sm_100": 100, "sm_120": 120}
KNOWN = [arch for arch, capability in MACHINES.items() if capability in cupy.cuda.nvrtc.getSupportedArchs()]


def extent(elf: bytes) -> int:
    """Return where the tables of an ELF file of 64 bits end."""
    programs, sections = struct.unpack_from("<QQ", elf, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", elf, 54)
    return int(max(programs + program_size * program_count, sections + section_size * section_count))


@pytest.mark.parametrize("arch", KNOWN)
def test_a_kernel_compiles_for_every_architecture(arch: str) -> None:
    found = nvrtc.compile_kernel(kernel(TINY, "block_sums", ELEMENT="float", SCALE=3, threads=64, shared=256), arch)
    assert found.cubin[:4] == b"\x7fELF"
    assert len(found.cubin) >= extent(found.cubin)
    for name in (b".text.block_sums", b".text.scale", b".text.echo"):
        assert name in found.cubin
    assert 8 <= found.registers <= 64
    assert (found.stack, found.spills, found.shared) == (0, 0, 0)
    assert nvrtc.arch_of(MACHINES[arch]) == arch


def test_what_a_kernel_uses_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "greedy.cu").write_text(
        """#include "machine.cuh"
KERNEL(modest)(float* x) { x[thread_index()] = 1; }
KERNEL(greedy)(const float* x, float* y, int n) {
    __shared__ float kept[300];
    float many[128];
    for (int i = 0; i < 128; ++i) many[i] = x[i * THREADS + thread_index()];
    kept[thread_index()] = many[n];
    sync_block();
    for (int i = 0; i < 128; ++i) y[i * n + thread_index()] = many[i] * kept[i];
}
"""
    )
    greedy = kernel(str(tmp_path / "greedy"), "greedy", threads=1024, blocks_per_sm=2)
    found = nvrtc.compile_kernel(greedy, KNOWN[0])
    assert found.registers <= 32  # two blocks of 1024 threads share 65536
    assert found.stack >= 512
    assert found.shared == 1200
    assert "Compiling entry function 'greedy'" in found.log
    modest = nvrtc.compile_kernel(kernel(greedy.file, "modest", threads=1024, blocks_per_sm=2), KNOWN[0])
    assert (modest.path, modest.stack, modest.spills, modest.shared) == (found.path, 0, 0, 0)


def test_spills_are_counted() -> None:
    log = (
        "Compiling entry function 'a' for 'sm_80'\n 16 bytes stack frame, 24 bytes spill stores, 8 bytes spill loads\n"
    )
    used = nvrtc._used(kernel("file", "a"), log + "Used 255 registers, 48 bytes smem\n")
    assert used == {"registers": 255, "stack": 16, "spills": 32, "shared": 48}
    with pytest.raises(KernelError, match=r"^b of file\.cu \(THREADS=128, .*is not in the compiler's log:\nCompiling"):
        nvrtc._used(kernel("file", "b"), log)


def test_lambdas_and_plain_functions_run_on_the_device(tmp_path: Path) -> None:
    (tmp_path / "plain.cu").write_text(
        """#include "machine.cuh"
template <class Each> constexpr int twice(int n, Each each) { each(n); return 2 * n; }
KERNEL(plain)(int* x, int n) { x[1] = twice(n, [&](int i) { x[i] = n; }); }
"""
    )
    assert nvrtc.compile_kernel(kernel(str(tmp_path / "plain"), "plain"), KNOWN[0]).registers > 0


def test_an_error_names_file_macros_architecture_and_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text('#include "machine.cuh"\n\nKERNEL(wrong)(int n) { int m = absent + n; }\n')
    with pytest.raises(KernelError) as raised:
        nvrtc.compile_kernel(kernel(str(tmp_path / "wrong"), "wrong", threads=32, SCALE=7), KNOWN[0])
    text = str(raised.value)
    wanted = (
        "wrong.cu does not compile for",
        KNOWN[0],
        "-DTHREADS=32",
        "-DSCALE=7",
        'identifier "absent" is undefined',
    )
    assert [part for part in wanted if part not in text] == []
    assert re.search(r"wrong\.cu\(3\)", text)


def test_an_architecture_that_nvrtc_does_not_know_is_refused_with_those_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Old:
        getVersion = staticmethod(lambda: (12, 0))  # noqa: N815  NVRTC's names
        getSupportedArchs = staticmethod(lambda: (75, 80, 86, 90))  # noqa: N815

    old: Any = Old()
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: old)
    wanted = "NVRTC 12.0 does not know sm_100, only sm_75, sm_80, sm_86, sm_90. Hint: a later CUDA does"
    with pytest.raises(KernelError, match=re.escape(wanted)):
        nvrtc.arch_of(100)
    with pytest.raises(KernelError, match=re.escape(wanted)):
        nvrtc._compile(kernel(TINY, "scale"), "sm_100", ())
    assert [nvrtc.arch_of(capability) for capability in (80, 86, 89, 90)] == ["sm_80", "sm_86", "sm_86", "sm_90a"]

"""The routing kernels compiled for GPUs, without one: everything a thread keeps is in registers."""

from __future__ import annotations

import pytest

from sparsemoc.backends.cupy import nvrtc
from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import Kernel, kernel
from sparsemoc.backends.cupy.routing_tiles import drop_kernel, index_kernel, pool_kernel, route_kernel, split_kernel

pytest.importorskip("cupy", reason="NVRTC is called through CuPy")

try:
    nvrtc.version()
except Exception as error:  # noqa: BLE001  it depends on how the library is absent
    pytest.skip(f"CuPy finds no NVRTC: {error}", allow_module_level=True)

CONFIG = CupyConfig()
KERNELS = {
    "candidates": kernel("candidates", "find_candidates"),
    "drop": drop_kernel(16),
    "index": index_kernel("place_entries"),
    "split_starts": index_kernel("split_starts"),
    "pool-bfloat16": pool_kernel("pool", "bfloat16", 128, CONFIG.pool_warps),
    "pool-float32": pool_kernel("pool_units", "float32", 256, CONFIG.pool_warps),
    "split": split_kernel(128),
    "route-bfloat16": route_kernel("bfloat16", 128, 5, CONFIG, 80),
    "route-float16": route_kernel("float16", 64, 5, CONFIG, 80),
    "route-float32": route_kernel("float32", 256, 512, CONFIG, 80),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("found", KERNELS.values(), ids=KERNELS)
def test_nothing_spills(found: Kernel, arch: str) -> None:
    used = nvrtc.compile_kernel(found, arch)
    assert (used.stack, used.spills) == (0, 0)
    # Two blocks of the longest kernels share a multiprocessor.
    assert used.registers * found.threads <= 2**15

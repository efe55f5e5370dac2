"""The roofline: what the machine's peaks allow, measured in the same run.

With I = useful FLOPs / useful bytes, attainable = min(peak FLOP/s, I x peak bytes/s). The peaks are those of a matrix
product and of a copy, the best of a few tries, on as many threads: of NumPy's BLAS in float32 on the CPU, where half
precisions are computed in float32; of torch in the dtype on CUDA.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import threadpoolctl

#: Rows of the matrices, and bytes of the copy, several times the caches.
CPU_ROWS, CUDA_ROWS = 2048, 8192
CPU_BYTES, CUDA_BYTES = 2**27, 2**30
TRIES = 5


@dataclass(frozen=True)
class Peaks:
    """What was measured.

    Attributes:
        flops_per_s, bytes_per_s: the peaks.
        how: what was run.
    """

    flops_per_s: float
    bytes_per_s: float
    how: str

    def attainable(self, flops: float, nbytes: float) -> float:
        """Return the FLOP/s that the peaks allow."""
        return min(self.flops_per_s, flops / nbytes * self.bytes_per_s)

    def record(self, flops: float, nbytes: float, seconds: float) -> dict[str, Any]:
        """Return the field `roofline` of a record."""
        attainable = self.attainable(flops, nbytes)
        return {
            "share": flops / seconds / attainable,
            "bound": "compute" if attainable == self.flops_per_s else "memory",
            "flops_per_s": self.flops_per_s,
            "bytes_per_s": self.bytes_per_s,
            "how": self.how,
        }


@cache
def peaks(device: str, dtype: str, threads: int) -> Peaks:
    """Measure the peaks; once in a process."""
    return _cuda(dtype) if device == "cuda" else _cpu(threads)


@cache
def _cpu(threads: int) -> Peaks:
    a, b = np.random.default_rng(0).standard_normal((2, CPU_ROWS, CPU_ROWS), np.float32)
    out, source = np.empty_like(a), np.ones(CPU_BYTES // 4, np.float32)
    target = np.empty_like(source)
    with threadpoolctl.threadpool_limits(threads):
        product = _best(lambda: np.matmul(a, b, out=out))
        copy = _best(lambda: _copy(source, target, threads))
    sizes = f"NumPy matmul of {CPU_ROWS}² float32 and a copy of {CPU_BYTES / 1e6:.0f} MB"
    how = f"{sizes}, {threads} threads, best of {TRIES}"
    return Peaks(2 * CPU_ROWS**3 / product, 2 * CPU_BYTES / copy, how)


def _copy(source: Any, target: Any, threads: int) -> None:
    """Copy in as many parts as threads: NumPy releases the GIL while it copies."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(np.copyto, np.array_split(target, threads), np.array_split(source, threads)):
            pass


def _best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _cuda(dtype: str) -> Peaks:
    import torch

    from bench.gpu.clock import interleaved
    from bench.gpu.report import Setup

    a, b = torch.randn(2, CUDA_ROWS, CUDA_ROWS, device="cuda", dtype=getattr(torch, dtype))
    out, source = torch.empty_like(a), torch.ones(CUDA_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {
        "product": lambda: torch.mm(a, b, out=out),
        "copy": lambda: target.copy_(source),
    }
    for call in calls.values():
        call()
    times = interleaved(calls, TRIES, Setup("cuda", False, False)).seconds
    how = f"torch matmul of {CUDA_ROWS}² {dtype} and a copy of {CUDA_BYTES / 1e9:.2g} GB, best of {TRIES}"
    return Peaks(2 * CUDA_ROWS**3 / times["product"].min(), 2 * CUDA_BYTES / times["copy"].min(), how)

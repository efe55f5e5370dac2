"""What GPUs have: the limits of their multiprocessors, and their peaks."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """The limits of a multiprocessor, and the peaks of one GPU of the architecture.

    Attributes:
        shared, shared_all: most bytes of shared memory of a block, and of a multiprocessor.
        threads: most of a multiprocessor.
        processors: multiprocessors.
        flops: of 16-bit products, a second, without sparsity; those of tf32 are half.
        bandwidth: bytes a second, of device memory.
    """

    shared: int
    shared_all: int
    threads: int
    processors: int
    flops: float
    bandwidth: float


def _gpu(kib: int, threads: int, processors: int, tflops: float, gigabytes: float) -> Gpu:
    """Return a GPU; the system keeps 1 KB of a multiprocessor's shared memory for each block."""
    return Gpu(kib * 1024, (kib + 1) * 1024, threads, processors, tflops * 1e12, gigabytes * 1e9)


#: By compute capability. Limits: CUDA C++ Programming Guide, technical specifications by compute capability. Peaks:
#: NVIDIA's data sheets of A100 SXM 80 GB, A40, Jetson AGX Orin, L40S, H100 SXM, B200, B300, GeForce RTX 5090, GB10.
GPUS = {
    80: _gpu(163, 2048, 108, 312, 2039),
    86: _gpu(99, 1536, 84, 150, 696),
    87: _gpu(163, 1536, 16, 43, 205),
    89: _gpu(99, 1536, 142, 362, 864),
    90: _gpu(227, 2048, 132, 989, 3350),
    100: _gpu(227, 2048, 148, 2250, 8000),
    103: _gpu(227, 2048, 148, 2250, 8000),
    120: _gpu(99, 1536, 170, 210, 1792),
    121: _gpu(99, 1536, 48, 62, 273),
}


def gpu_of(capability: int) -> Gpu:
    """Return the GPU of a compute capability, or of the next lower one that is known."""
    known = [one for one in GPUS if one <= capability]
    return GPUS[max(known, default=min(GPUS))]

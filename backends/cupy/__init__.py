"""CUDA kernels, compiled when first used, on CuPy arrays and torch tensors; without a GPU they run on the CPU."""

from sparsemoc.backends.cupy.faults import synchronize

__all__ = ["synchronize"]

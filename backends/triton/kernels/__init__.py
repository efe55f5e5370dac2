"""The Triton kernels: plain `@triton.jit` functions that take every tile size from their caller."""

"""The Triton backend: forward and backward on NVIDIA GPUs, on torch tensors and JAX arrays."""

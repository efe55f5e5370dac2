"""Functions for JAX models."""

from sparsemoc.adapters.flax import flax_attention_fn
from sparsemoc.frameworks.jax_bridge import way as host_bridge

__all__ = ["flax_attention_fn", "host_bridge"]

"""Values that JAX traces: they have a shape and a dtype, and no data. Told without importing JAX."""

from __future__ import annotations


def is_traced(value: object) -> bool:
    """Return whether a value is a tracer: an array under jax.jit, jax.grad, jax.vmap or another transformation."""
    return any(kind.__name__ == "Tracer" and kind.__module__.partition(".")[0] == "jax" for kind in type(value).__mro__)

"""Functions for JAX models."""

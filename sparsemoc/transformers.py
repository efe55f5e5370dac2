"""Mixture of Contexts as an attention implementation of Hugging Face transformers."""

from sparsemoc.adapters.transformers import register

__all__ = ["register"]

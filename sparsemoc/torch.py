"""Modules and functions for PyTorch models."""

from sparsemoc.adapters.modules import MoCAttention
from sparsemoc.adapters.sdpa import sdpa_like

__all__ = ["MoCAttention", "sdpa_like"]

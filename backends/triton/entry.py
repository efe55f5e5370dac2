"""Where the registry enters: what the backend needs is looked for before anything heavy is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsemoc.backends.triton.backend import TritonBackend

_HINT = "Hint: TRITON_INTERPRET=1, set before Python starts, runs the kernels on the CPU, for tests"


def _missing() -> str | None:
    """Return what is missing, or None. The driver is asked before torch, which takes a second to load."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not _driver():
        return f"there is no NVIDIA driver: libcuda.so.1 is not found. {_HINT}"
    if importlib.util.find_spec("triton") is None:
        return 'triton is not installed. Hint: pip install "sparsemoc[triton]"'
    if not interpreted and importlib.util.find_spec("jax_triton") is not None:
        return None
    if importlib.util.find_spec("torch") is None:
        return 'torch is not installed. Hint: pip install "sparsemoc[triton]", or jax-triton for JAX arrays'
    if not interpreted:
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device. {_HINT}"
    return None


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _backend() -> TritonBackend:
    if reason := _missing():
        raise ImportError(reason)
    from sparsemoc.backends.triton.backend import TritonBackend

    return TritonBackend()


BACKEND = _backend()

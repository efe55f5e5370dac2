"""Telling torch tensors from other arrays, without importing torch for those who have none."""

from __future__ import annotations

import sys
from typing import Any


def torch_of(array: Any) -> Any:
    """Return the torch module if the array is one of its tensors, else None."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else None

"""The arrays of a call, in the library of whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sparsemoc.tuning.problems import NamedProblem, arrays

#: What is timed: attention with its routing; that and its gradients; routing alone; attention of a given layout.
Mode = Literal["forward", "forward+backward", "route", "attend"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward", "route", "attend")


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """The arrays of a call of batch 1, (1, tokens, heads, head_dim); q and d_out have as many tokens as queries.

    Attributes:
        dtype: "float16", "bfloat16" or "float32".
        device: "cpu", where the arrays are NumPy's, or "cuda", where they are tensors.
        q, k, v, d_out: the arrays.
    """

    dtype: str
    device: str
    q: Any
    k: Any
    v: Any
    d_out: Any

    @property
    def all(self) -> tuple[Any, Any, Any, Any]:
        """The four arrays."""
        return self.q, self.k, self.v, self.d_out

    def tensors(self) -> tuple[Any, Any, Any, Any]:
        """Return the arrays as torch tensors; on the CPU they share their memory."""
        return self._tensors

    @cached_property
    def _tensors(self) -> tuple[Any, Any, Any, Any]:
        q, k, v, d_out = (tensor(array) for array in self.all)
        return q, k, v, d_out

    def on_host(self) -> Inputs:
        """Return the same numbers as NumPy arrays."""
        if self.device == "cpu":
            return self
        q, k, v, d_out = (host(array) for array in self.all)
        return Inputs(dtype=self.dtype, device="cpu", q=q, k=k, v=v, d_out=d_out)


def inputs(problem: NamedProblem, dtype: str, device: str) -> Inputs:
    """Return the arrays of a problem, independent normal numbers, the same ones each time on a kind of device."""
    if device == "cpu":
        made = arrays(problem, dtype)
        return Inputs(dtype=dtype, device=device, q=made.q, k=made.k, v=made.v, d_out=made.d_out)
    import torch

    random = torch.Generator(device).manual_seed(0)

    def normal(tokens: int, heads: int, width: int) -> Any:
        shape = 1, tokens, heads, width
        return torch.randn(shape, generator=random, device=device, dtype=getattr(torch, dtype))

    return Inputs(
        dtype=dtype,
        device=device,
        q=normal(problem.queries, problem.heads, problem.head_dim),
        k=normal(problem.tokens, problem.kv_heads, problem.head_dim),
        v=normal(problem.tokens, problem.kv_heads, problem.v_head_dim),
        d_out=normal(problem.queries, problem.heads, problem.v_head_dim),
    )


def tensor(array: Any) -> Any:
    """Return a NumPy array as a torch tensor over the same memory; a tensor as it is."""
    import torch

    if not isinstance(array, np.ndarray):
        return array
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def host(array: Any) -> Any:
    """Return a torch tensor as a NumPy array, copied if it lies on a device; a NumPy array as it is."""
    if isinstance(array, np.ndarray):
        return array
    import torch

    array = array.detach().cpu()
    if array.dtype == torch.bfloat16:
        import ml_dtypes

        return array.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return array.numpy()

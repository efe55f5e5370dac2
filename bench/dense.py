"""The baseline: torch's scaled_dot_product_attention over all pairs, on the same threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from bench.inputs import Inputs

#: Why there is no baseline, or None.
ABSENT = None if importlib.util.find_spec("torch") else "torch is not installed: no comparison with dense attention"


class Dense:
    """Torch's own copies of the inputs, (1, heads, tokens, head_dim) contiguous: the order it is fastest in."""

    def __init__(self, inputs: Inputs, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._q, self._k, self._v, self._d_out = (x.transpose(1, 2).contiguous() for x in inputs.tensors())

    def forward(self) -> object:
        """Compute out, without a graph for gradients."""
        with self._torch.inference_mode():
            return self._torch.nn.functional.scaled_dot_product_attention(self._q, self._k, self._v)

    def gradients(self) -> object:
        """Compute out and the gradients of q, k and v, through autograd."""
        leaves = [x.detach().requires_grad_() for x in (self._q, self._k, self._v)]
        out = self._torch.nn.functional.scaled_dot_product_attention(*leaves)
        return self._torch.autograd.grad(out, leaves, self._d_out)


def beside(inputs: Inputs, threads: int, method: str) -> dict[str, Callable[[], object]]:
    """Return {"dense": the call}, or nothing where torch is absent."""
    return {} if ABSENT else {"dense": getattr(Dense(inputs, threads), method)}

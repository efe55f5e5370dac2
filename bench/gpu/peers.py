"""What others compute: dense attention by every kernel on the machine, and FlexAttention under the same mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sparsemoc as moc
from bench.gpu.clock import Call
from bench.gpu.report import Setup
from bench.gpu.settings import Arrays
from bench.peers import packages, sdpa
from bench.peers.flex import compiled
from bench.peers.torch_call import heads_first

#: Kernels of torch's scaled_dot_product_attention that are timed, by their names in `bench.peers.sdpa`.
SDPA = ("flash", "cuDNN")

#: A dense attention: q, k and v as (batch, tokens, heads, head_dim), and so the result.
Dense = Callable[[Any, Any, Any], Any]


def dense(causal: bool, setup: Setup) -> dict[str, Dense]:
    """Return every dense attention that the machine may have; a call of one that it has not raises."""
    if not setup.cuda:
        return {"torch": _turned(sdpa.attention(None, causal=causal))}
    kernels = {name: _turned(sdpa.attention(name, causal=causal)) for name in SDPA}
    return kernels | {name: _package(name, causal) for name in packages.DENSE}


def _turned(attend: Dense) -> Dense:
    """Return an attention over arrays with heads first as one over arrays with tokens first."""
    return lambda q, k, v: heads_first(attend(*map(heads_first, (q, k, v))))


def _package(name: str, causal: bool) -> Dense:
    def attend(q: Any, k: Any, v: Any) -> Any:
        kernel = packages.dense(name, causal)  # now, so that a call of one that is not installed raises
        return kernel(q, k, v)

    return attend


def forward(attend: Dense, x: Arrays) -> Call:
    """Return the forward of a dense attention, without a graph for gradients."""
    import torch

    def call() -> Any:
        with torch.no_grad():
            return attend(*x.qkv)

    return call


def gradients(attend: Dense, x: Arrays) -> Call:
    """Return forward and backward, through autograd."""
    import torch

    def call() -> Any:
        leaves = [array.detach().requires_grad_() for array in x.qkv]
        return torch.autograd.grad(attend(*leaves), leaves, x.d_out)

    return call


def backward(attend: Dense, x: Arrays) -> Call:
    """Return the backward alone, of a forward that is done here."""
    import torch

    leaves = [array.detach().requires_grad_() for array in x.qkv]
    out = attend(*leaves)
    return lambda: torch.autograd.grad(out, leaves, x.d_out, retain_graph=True)


def flex(layout: moc.Layout) -> Dense:
    """Return compiled FlexAttention under the mask of a layout."""
    return _turned(compiled(layout))

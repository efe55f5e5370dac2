"""What others compute: dense attention by every kernel on the machine, and FlexAttention under the same mask."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import sparsemoc as moc
from bench.gpu.clock import Call
from bench.gpu.report import Setup
from bench.gpu.settings import Arrays

#: Backends of torch's scaled_dot_product_attention by the name of their peer.
SDPA = {"flash": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
#: Packages that bring a `flash_attn_func(q, k, v, causal=...)` over (batch, tokens, heads, head_dim).
PACKAGES = {"flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}

#: A dense attention: q, k and v as (batch, tokens, heads, head_dim), and so the result.
Dense = Callable[[Any, Any, Any], Any]


def dense(causal: bool, setup: Setup) -> dict[str, Dense]:
    """Return every dense attention that the machine may have; a call of one that it has not raises."""
    if not setup.cuda:
        return {"torch": lambda q, k, v: _sdpa(q, k, v, causal)}
    kernels = {name: _backend(backend, causal) for name, backend in SDPA.items()}
    return kernels | {name: _package(module, causal) for name, module in PACKAGES.items()}


def _sdpa(q: Any, k: Any, v: Any, causal: bool) -> Any:
    import torch

    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)


def _backend(name: str, causal: bool) -> Dense:
    def attend(q: Any, k: Any, v: Any) -> Any:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, name)):
            return _sdpa(q, k, v, causal)

    return attend


def _package(module: str, causal: bool) -> Dense:
    def attend(q: Any, k: Any, v: Any) -> Any:
        out = importlib.import_module(module).flash_attn_func(q, k, v, causal=causal)
        return out[0] if isinstance(out, tuple) else out

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
    """Return compiled FlexAttention under the mask of a layout.

    Its block lists hold every block that a query of it chose; where each query chooses for itself that is nearly all.
    """
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    mask = layout.to_block_mask(128)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)

    return attend

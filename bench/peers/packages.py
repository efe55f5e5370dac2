"""Kernels of installed packages, for CUDA devices: FlashAttention, dense; and FlashMoBA, which routes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.peers.call import Call
from bench.peers.peer import Outputs, Peer, Unavailable, installed, on_cuda
from bench.peers.torch_call import Attention, torch_call

#: Modules with a `flash_attn_func(q, k, v, causal=...)` over (batch, tokens, heads, head_dim), by name of the package.
DENSE = {"flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}


def dense(package: str, causal: bool) -> Attention:
    """Return the dense attention of a package of `DENSE`, (batch, tokens, heads, head_dim).

    Raises:
        Unavailable: it is not installed.
    """
    kernel = installed(DENSE[package], package).flash_attn_func

    def attend(q: Any, k: Any, v: Any) -> Any:
        out = kernel(q, k, v, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return attend


def peers(call: Call) -> Iterator[Peer]:
    """Yield what packages bring, installed or not."""
    if call.mode == "route":
        return
    for package in DENSE:
        yield Peer(
            name=package, computes="dense", flops=call.flops(call.dense_pairs), prepare=partial(_dense, call, package)
        )
    if call.mode != "attend":
        yield Peer(
            name="FlashMoBA",
            computes="moc",
            flops=call.flops(call.pairs) + call.routing_flops(),
            note="routes by itself, and does not tell its routes",
            prepare=partial(_flash_moba, call),
        )


def _dense(call: Call, package: str) -> Callable[[], Outputs]:
    on_cuda(call.device)
    return torch_call(dense(package, call.problem.token_causal), call.tensors(), backward=call.backward)


def _flash_moba(call: Call) -> Callable[[], Outputs]:
    """Return FlashMoBA's call: its own chunk counts among the chosen ones."""
    on_cuda(call.device)
    package = installed("flash_moba", "flash-moba")
    if reason := _refused(call):
        raise Unavailable(reason)
    import torch

    ends = torch.tensor([0, call.problem.tokens], dtype=torch.int32, device=call.device)
    lengths = (ends, ends, call.problem.tokens, call.problem.tokens)
    chunk, chosen = int(call.plan.samples[0].chunk_lengths[0]), call.spec.max_top_k + 1

    def attend(q: Any, k: Any, v: Any) -> Any:
        return package.flash_moba_varlen_func(q[0], k[0], v[0], *lengths, chunk, chosen, causal=True)[None]

    return torch_call(attend, call.tensors(), backward=call.backward)


def _refused(call: Call) -> str | None:
    """Return why a problem is not MoBA's: equal chunks of one stream, the own one up to oneself, the best earlier."""
    spec, lengths = call.spec, call.plan.samples[0].chunk_lengths
    same = isinstance(spec.top_k, int) and spec.unit == "token" and len(call.problem.stream.segments) == 1
    if not same or spec.anchors != ("chunk",) or spec.causal != "token":
        return 'knows MoBA\'s routing alone: one segment, anchors=("chunk",), causal="token", one top_k, by token'
    if (lengths[:-1] != lengths[0]).any() or lengths[-1] > lengths[0]:
        return "takes chunks of one length, the last one apart"
    return None if call.problem.queries == call.problem.tokens else "takes as many queries as keys"

"""What a call with torch tensors on the CPU costs beside NumPy arrays: `python -m bench.torch_latency`.

Both end in the same Numba kernels: what is compared is the way there, custom operators, autograd and compiled graphs
against none. `attention` of float32, batch 1, 4 heads of 64, four shots as anchors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import sparsemoc as moc
from bench import latency, machine

TOKENS = (512, 2048, 8192)


def cases(tokens: int) -> dict[str, latency.Calls]:
    """Return the forward, and the forward with its gradients."""
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=tokens // 16), top_k=3, anchors=("shot",))
    stream = moc.Stream(tuple(moc.Segment("video", tokens // 4, shot=shot) for shot in range(4)))
    arrays = np.random.default_rng(0).standard_normal((4, 1, tokens, 4, 64), np.float32)
    q, k, v, d_out = arrays
    tensors = [torch.from_numpy(array) for array in arrays]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]

    def attend(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, spec, stream=stream, backend="numba")

    def gradients(function: Callable[..., Any]) -> Any:
        return torch.autograd.grad(function(*leaves), leaves, tensors[3])

    compiled = torch.compile(attend, fullgraph=True)
    forward = {
        "NumPy": lambda: attend(q, k, v),
        "torch": lambda: attend(*tensors[:3]),
        "torch, compiled": lambda: compiled(*tensors[:3]),
    }
    both = {
        "NumPy": lambda: moc.attention_grads(q, k, v, spec, d_out, stream=stream, backend="numba"),
        "torch": lambda: gradients(attend),
        "torch, compiled": lambda: gradients(compiled),
    }
    return {f"{tokens:,} tokens": forward, f"{tokens:,} tokens, with gradients": both}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the lines and the table."""
    asked = latency.parser("bench.torch_latency", "Time calls with torch tensors on the CPU.", TOKENS).parse_args(
        arguments
    )
    chosen: dict[str, latency.Calls] = {}
    for tokens in asked.tokens:
        chosen |= cases(tokens)
    latency.report(chosen, asked.rounds, machine.facts("numba", torch.get_num_threads()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

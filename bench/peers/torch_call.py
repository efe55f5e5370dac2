"""The timed call of an attention of torch: forward, or with the gradients that autograd gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.peers.peer import Outputs

#: Attention over tensors q, k and v; out has their order of axes.
Attention = Callable[[Any, Any, Any], Any]


def heads_first(x: Any) -> Any:
    """Swap the axes of tokens and heads, a view: to (batch, heads, tokens, head_dim), and back."""
    return x.transpose(1, 2)


def as_it_is(x: Any) -> Any:
    """Return what is given."""
    return x


def torch_call(
    attend: Attention, arrays: Sequence[Any], *, backward: bool, turn: Callable[[Any], Any] = as_it_is
) -> Callable[[], Outputs]:
    """Return the call of an attention.

    Args:
        attend: the attention.
        arrays: q, k, v and d_out, in its order of axes.
        backward: whether the gradients of q, k and v are computed too.
        turn: gives a result the order (batch, tokens, heads, head_dim).
    """
    import torch

    q, k, v, d_out = arrays

    def forward() -> Outputs:
        with torch.no_grad():
            return {"out": turn(attend(q, k, v))}

    def gradients() -> Outputs:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        found = dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, d_out), strict=True))
        return {name: turn(x) for name, x in {"out": out.detach(), **found}.items()}

    return gradients if backward else forward

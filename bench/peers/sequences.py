"""Attention over sequences of unlike length, end to end in one array, by torch's flash attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol


@dataclass(frozen=True, eq=False)
class Sequences:
    """Queries and keys end to end: where each sequence begins and the last ends, and the longest of each.

    Where they are causal, a sequence has as many queries as keys.
    """

    starts_q: Any
    starts_k: Any
    most_q: int
    most_k: int
    causal: bool


class VarLen(Protocol):
    """Attention over sequences end to end, (tokens, heads, head_dim); key heads may be fewer."""

    def forward(self, q: Any, k: Any, v: Any, part: Sequences) -> tuple[Any, Any, Any]:
        """Return out, lse (heads, queries) in float32, and what the backward needs besides."""

    def backward(
        self, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, part: Sequences, state: Any
    ) -> tuple[Any, Any, Any]:
        """Return dq, dk and dv; out and lse may be those of a whole of which the sequences are a part."""


class Flash:
    """One kernel over all sequences, on CUDA devices."""

    def forward(self, q: Any, k: Any, v: Any, part: Sequences) -> tuple[Any, Any, Any]:
        """See `VarLen`."""
        import torch

        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, part.starts_q, part.starts_k, part.most_q, part.most_k, 0.0, part.causal, False
        )
        if tuple(lse.shape) != (q.shape[1], q.shape[0]):
            raise NotImplementedError(f"torch's variable-length flash attention gives an lse of {tuple(lse.shape)}")
        return out, lse, (state, unused)

    def backward(
        self, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, part: Sequences, state: Any
    ) -> tuple[Any, Any, Any]:
        """See `VarLen`."""
        import torch

        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            d_out, q, k, v, out, lse, part.starts_q, part.starts_k, part.most_q, part.most_k, 0.0, part.causal, *state
        )
        return dq, dk, dv


class FlashOnCpu:
    """One call of torch's flash attention for each sequence: on the CPU it has none over sequences."""

    def forward(self, q: Any, k: Any, v: Any, part: Sequences) -> tuple[Any, Any, Any]:
        """See `VarLen`."""
        import torch

        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
        for rows, keys in _spans(part):
            found = attend(_batch(q[rows]), _batch(k[keys]), _batch(v[keys]), 0.0, part.causal)
            out[rows], lse[:, rows] = _end_to_end(found[0]), found[1][0]
        return out, lse, None

    def backward(
        self, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, part: Sequences, state: Any
    ) -> tuple[Any, Any, Any]:
        """See `VarLen`."""
        import torch

        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for rows, keys in _spans(part):
            given = (_batch(x) for x in (d_out[rows], q[rows], k[keys], v[keys], out[rows]))
            found = backward(*given, lse[None, :, rows], 0.0, part.causal)
            dq[rows], dk[keys], dv[keys] = (_end_to_end(x) for x in found)
        return dq, dk, dv


def _spans(part: Sequences) -> Iterator[tuple[slice, slice]]:
    """Yield the queries and the keys of each sequence that has any: torch's kernel divides by their number."""
    both = zip(pairwise(part.starts_q.tolist()), pairwise(part.starts_k.tolist()), strict=True)
    for rows, keys in both:
        if rows[0] < rows[1] and keys[0] < keys[1]:
            yield slice(*rows), slice(*keys)


def _batch(x: Any) -> Any:
    """Return (tokens, heads, head_dim) as a view (1, heads, tokens, head_dim)."""
    return x.transpose(0, 1)[None]


def _end_to_end(x: Any) -> Any:
    """Return (1, heads, tokens, head_dim) as a view (tokens, heads, head_dim)."""
    return x[0].transpose(0, 1)

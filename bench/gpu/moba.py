"""The composition that MoBA published: gather queries by chunk, variable-length attention, merge by lse.

Of torch's own flash attention, in plain torch. It reads counts on the host, as MoBA does. Every pair of a head and a
chunk is a sequence of its own, of one head: the queries that chose the chunk, against its keys.
Source: github.com/MoonshotAI/MoBA, moba_efficient.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import sparsemoc as moc


@dataclass(frozen=True, eq=False)
class Sequences:
    """Queries and keys end to end: where each sequence begins, and the longest of each."""

    starts_q: Any
    starts_k: Any
    most_q: int
    most_k: int
    causal: bool


class VarLen(Protocol):
    """Attention over sequences end to end, (tokens, 1, head_dim)."""

    def forward(self, q: Any, k: Any, v: Any, part: Sequences) -> tuple[Any, Any, Any]:
        """Return out, lse (1, queries), and what the backward needs besides."""

    def backward(
        self, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, part: Sequences, state: Any
    ) -> tuple[Any, Any, Any]:
        """Return dq, dk and dv; out and lse may be those of a whole of which the sequences are a part."""


class Flash:
    """Torch's flash attention over sequences of unlike length."""

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


def route(q: Any, k: Any, chunk: int, top_k: int) -> Any:
    """Return the top_k earlier chunks of each query by its product with their mean keys, (heads, queries, top_k).

    As MoBA does, over a whole (queries, chunks) table in float32; beyond the number of earlier chunks -1.
    """
    import torch

    tokens = q.shape[1]
    means = k[0].unflatten(0, (-1, chunk)).float().mean(1)
    scores = torch.einsum("ihd,chd->hic", q[0].float(), means)
    own = torch.arange(tokens, device=q.device)[:, None] // chunk
    scores.masked_fill_(torch.arange(len(means), device=q.device) >= own, -torch.inf)
    best = scores.topk(min(top_k, len(means)), dim=2)
    return best.indices.masked_fill_(best.values == -torch.inf, -1)


class Moba:
    """Attention of batch 1 over the chunks that each query chose, and its own where that is causal.

    Args:
        selected: (heads, queries, slots), chunk numbers, -1 for none.
        plan: the chunks.
        own: whether each query attends to its own chunk too, up to itself.
        sequences: the attention over sequences, by default torch's.
    """

    def __init__(self, selected: Any, plan: moc.Plan, own: bool, sequences: VarLen | None = None) -> None:
        import torch

        heads, tokens, slots = selected.shape
        device = selected.device
        bounds = torch.as_tensor(plan.samples[0].chunk_bounds.copy(), device=device)
        chunks, longest = len(bounds) - 1, int(plan.samples[0].chunk_lengths.max())
        entry = (selected.reshape(-1) >= 0).nonzero()[:, 0]
        query = entry // slots  # head * tokens + query: rows are laid out head by head
        sequence = query // tokens * chunks + selected.reshape(-1)[entry]
        self.rows = query[sequence.sort(stable=True).indices]
        counts = torch.bincount(sequence, minlength=heads * chunks)
        first = torch.arange(heads, device=device)[:, None] * tokens
        starts = torch.cat([(first + bounds[:-1]).reshape(-1), first.new_tensor([heads * tokens])]).int()
        starts_q = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        self.routed = Sequences(starts_q, starts, int(counts.max()), longest, False)
        self.own = Sequences(starts, starts, longest, longest, True) if own else None
        self.sequences = Flash() if sequences is None else sequences

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        """Return out (1, tokens, heads, head_dim)."""
        return _by_token(self._merged(*(_by_head(x) for x in (q, k, v)))[0], q.shape[2])

    def _merged(self, q: Any, k: Any, v: Any) -> tuple[Any, Any, list[Any]]:
        """Return out (rows, head_dim) in the dtype of q, lse (1, rows), and what the parts keep for a backward."""
        import torch

        out, lse, state = self.sequences.forward(q[self.rows], k, v, self.routed)
        states = [state]
        own_out, own_lse = torch.zeros_like(q), lse.new_full((1, len(q)), -torch.inf)
        if self.own is not None:
            own_out, own_lse, state = self.sequences.forward(q, k, v, self.own)
            states.append(state)
        top = own_lse[0].scatter_reduce(0, self.rows, lse[0], "amax")
        weight, own_weight = torch.exp(lse[0] - top[self.rows]), torch.exp(own_lse[0] - top)
        total = own_weight.index_add(0, self.rows, weight)
        merged = own_weight[:, None] * own_out[:, 0]
        merged.index_add_(0, self.rows, weight[:, None] * out[:, 0])
        return (merged / total[:, None]).to(q.dtype), (top + total.log())[None], states

    def gradients(self, q: Any, k: Any, v: Any, d_out: Any) -> tuple[Any, Any, Any]:
        """Compute out, and return dq, dk and dv, as q."""
        import torch

        heads = q.shape[2]
        q, k, v, d_out = (_by_head(x) for x in (q, k, v, d_out))
        merged, lse, states = self._merged(q, k, v)
        out, rows = merged[:, None], self.rows
        of_rows = (d_out[rows], q[rows], k, v, out[rows], lse[:, rows])
        dq_rows, dk, dv = self.sequences.backward(*of_rows, self.routed, states[0])
        dq = torch.zeros_like(q[:, 0], dtype=torch.float32).index_add_(0, rows, dq_rows[:, 0].float())
        if self.own is not None:
            own = self.sequences.backward(d_out, q, k, v, out, lse, self.own, states[1])
            dq, dk, dv = dq + own[0][:, 0], dk + own[1], dv + own[2]
        return _by_token(dq.to(q.dtype), heads), _by_token(dk[:, 0], heads), _by_token(dv[:, 0], heads)


def _by_head(x: Any) -> Any:
    """Return (1, tokens, heads, head_dim) head by head, as (heads * tokens, 1, head_dim)."""
    return x[0].transpose(0, 1).reshape(-1, 1, x.shape[3])


def _by_token(x: Any, heads: int) -> Any:
    """Return (heads * tokens, head_dim) as a view (1, tokens, heads, head_dim)."""
    return x.unflatten(0, (heads, -1)).transpose(0, 1)[None]

"""The composition that MoBA published: gather queries by chunk, variable-length attention, merge by lse.

In plain torch, and for every anchor but a token window: their rectangles are attended as they lie. It reads counts on
the host, as MoBA does. Every pair of a key head and a chunk is a sequence of its own: the queries that chose the
chunk, against its keys.
Source: github.com/MoonshotAI/MoBA, moba_efficient.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sparsemoc as moc
from bench.peers.anchors import families
from bench.peers.sequences import Flash, FlashOnCpu, Sequences, VarLen


@dataclass(frozen=True, eq=False)
class Routed:
    """The routes by chunk: which row of (queries * heads) each query of the sequences is."""

    rows: Any
    sequences: Sequences


@dataclass(frozen=True, eq=False)
class Merged:
    """Out (queries, heads, head_dim) in the dtype of q, lse (heads, queries), and what a backward needs besides."""

    out: Any
    lse: Any
    routed: Routed | None
    states: list[Any]


class Composition:
    """Attention of batch 1 over the anchors of each query and the chunks that it chose, without padding.

    Args:
        plan: the chunks and the anchors, none of which cuts a chunk that may be chosen.
        kv_heads: key heads.
        device: "cpu" or "cuda".
        attention: over sequences, by default torch's for the device.
    """

    def __init__(self, plan: moc.Plan, kv_heads: int, device: str, attention: VarLen | None = None) -> None:
        import torch

        sample = plan.samples[0]
        bounds = torch.as_tensor(sample.chunk_bounds.copy(), device=device)
        first = torch.arange(kv_heads, device=device)[:, None] * sample.k_tokens
        self._starts_k = torch.cat([(first + bounds[:-1]).reshape(-1), bounds[-1:] * kv_heads]).int()
        self._chunks, self._longest = sample.chunks, int(sample.chunk_lengths.max())
        self._kv_heads = kv_heads
        self._anchors = families(sample, device)
        self._attention = attention or (Flash() if device == "cuda" else FlashOnCpu())

    def forward(self, q: Any, k: Any, v: Any, selected: Any) -> tuple[Any, Any]:
        """Return out (1, queries, heads, head_dim) and lse (1, heads, queries).

        Args:
            q, k, v: (1, tokens, heads, head_dim), key heads may be fewer.
            selected: (heads, queries, slots), chunk numbers, -1 for none.
        """
        merged = self._merged(q[0], k[0], v[0], _by_head(k), _by_head(v), selected)
        return merged.out[None], merged.lse[None]

    def gradients(self, q: Any, k: Any, v: Any, selected: Any, d_out: Any) -> tuple[Any, Any, Any, Any]:
        """Return out, dq, dk and dv, as q, k and v; the rest as for `forward`."""
        import torch

        k_by_head, v_by_head = _by_head(k), _by_head(v)
        q, k, v, d_out = q[0], k[0], v[0], d_out[0]
        merged = self._merged(q, k, v, k_by_head, v_by_head, selected)
        out, lse = merged.out, merged.lse
        dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v))
        for family, state in zip(self._anchors, merged.states, strict=False):  # the last state is of the routes
            i, j = family.rows, family.keys
            given = (d_out[i], q[i], k[j], v[j], out[i], lse[:, i].contiguous())
            parts = self._attention.backward(*given, family.sequences, state)
            for total, span, part in zip((dq, dk, dv), (i, j, j), parts, strict=True):
                total[span] += part
        if merged.routed is not None:
            rows = merged.routed.rows
            q_rows, out_rows, d_out_rows = (_gathered(x, rows) for x in (q, out, d_out))
            lse_rows = lse.transpose(0, 1).reshape(-1)[rows][None]
            given = (d_out_rows, q_rows, k_by_head, v_by_head, out_rows, lse_rows)
            parts = self._attention.backward(*given, merged.routed.sequences, merged.states[-1])
            dq.view(-1, q.shape[2]).index_add_(0, rows, parts[0][:, 0].float())
            for total, part in zip((dk, dv), parts[1:], strict=True):
                total += part.unflatten(0, (self._kv_heads, -1))[:, :, 0].transpose(0, 1)
        return out[None], *(total.to(x.dtype)[None] for total, x in zip((dq, dk, dv), (q, k, v), strict=True))

    def _routed(self, selected: Any) -> Routed | None:
        """Sort the routes by key head and chunk; None where there are none."""
        import torch

        heads, queries, slots = selected.shape
        flat = selected.reshape(-1)
        entry = (flat >= 0).nonzero()[:, 0]
        if not len(entry):
            return None
        head, query = entry // slots // queries, entry // slots % queries
        sequence = head // (heads // self._kv_heads) * self._chunks + flat[entry]
        order = sequence.sort(stable=True).indices
        counts = torch.bincount(sequence, minlength=self._kv_heads * self._chunks)
        starts_q = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        parts = Sequences(starts_q, self._starts_k, int(counts.max()), self._longest, False)
        return Routed((query * heads + head)[order], parts)

    def _merged(self, q: Any, k: Any, v: Any, k_by_head: Any, v_by_head: Any, selected: Any) -> Merged:
        """Attend every part, and merge them by the lse of each."""
        import torch

        found = [
            self._attention.forward(q[family.rows], k[family.keys], v[family.keys], family.sequences)
            for family in self._anchors
        ]
        spans = [family.rows for family in self._anchors]
        routed = self._routed(selected)
        top = torch.full(q.shape[:2], -torch.inf, device=q.device)
        for span, (_, lse, _) in zip(spans, found, strict=True):
            top[span] = torch.maximum(top[span], lse.transpose(0, 1))
        if routed is not None:
            found.append(self._attention.forward(_gathered(q, routed.rows), k_by_head, v_by_head, routed.sequences))
            top.view(-1).scatter_reduce_(0, routed.rows, found[-1][1][0], "amax")
        total = torch.zeros_like(top)
        merged = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        for span, (out, lse, _) in zip(spans, found, strict=False):
            weight = torch.exp(lse.transpose(0, 1) - top[span])
            total[span] += weight
            merged[span] += weight[..., None] * out
        if routed is not None:
            out, lse, _ = found[-1]
            weight = torch.exp(lse[0] - top.view(-1)[routed.rows])
            total.view(-1).index_add_(0, routed.rows, weight)
            merged.view(-1, q.shape[2]).index_add_(0, routed.rows, weight[:, None] * out[:, 0])
        # The largest part of a sum is exp(0): below 1 it is empty, of a query that sees no key.
        merged /= total.clamp(min=1)[..., None]
        states = [state for _, _, state in found]
        return Merged(merged.to(q.dtype), (top + total.log()).transpose(0, 1).contiguous(), routed, states)


def _by_head(x: Any) -> Any:
    """Return (1, tokens, heads, head_dim) head by head, as (heads * tokens, 1, head_dim)."""
    return x[0].transpose(0, 1).reshape(-1, 1, x.shape[3])


def _gathered(x: Any, rows: Any) -> Any:
    """Return rows of (tokens, heads, head_dim), counted token by token, as (rows, 1, head_dim)."""
    return x.reshape(-1, x.shape[2]).index_select(0, rows)[:, None]

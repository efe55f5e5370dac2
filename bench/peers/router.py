"""Routing as MoBA does it: a table of all scores in float32, and its best entries."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

import sparsemoc as moc
from sparsemoc.spec.sample_plan import SamplePlan


class Router:
    """The best candidate chunks of each query, by its product with their mean keys; each query for itself.

    Args:
        plan: the chunks, and which of them are candidates.
        heads: query heads.
        device: "cpu" or "cuda".
    """

    def __init__(self, plan: moc.Plan, heads: int, device: str) -> None:
        import torch

        sample = plan.samples[0]
        self._excluded = torch.as_tensor(~_candidates(sample), device=device)
        self._stretches = [(length, len(list(same))) for length, same in groupby(sample.chunk_lengths.tolist())]
        self._top_k = plan.spec.top_k_of(heads)
        self._slots = min(max(self._top_k), sample.chunks)

    def __call__(self, q: Any, k: Any) -> Any:
        """Return chunk numbers, (heads, queries, slots), best first, -1 beyond their count.

        Args:
            q, k: (1, tokens, heads, head_dim); key heads may be fewer.
        """
        import torch

        means = self._means(k[0])
        grouped = q[0].float().unflatten(1, (means.shape[1], -1))
        scores = torch.einsum("ikgd,ckd->kgic", grouped, means).flatten(0, 1)
        best = scores.masked_fill_(self._excluded, -torch.inf).topk(self._slots, dim=2)
        selected = best.indices.masked_fill_(best.values == -torch.inf, -1)
        if len(set(self._top_k)) > 1:
            for head, top_k in enumerate(self._top_k):
                selected[head, :, top_k:] = -1
        return selected

    def _means(self, k: Any) -> Any:
        """Return the mean key of each chunk, (chunks, heads, head_dim) in float32."""
        import torch

        found, start = [], 0
        for length, count in self._stretches:
            stop = start + length * count
            found.append(k[start:stop].unflatten(0, (count, length)).mean(1, dtype=torch.float32))
            start = stop
        return torch.cat(found)


def _candidates(sample: SamplePlan) -> Any:
    """Return which chunks each query may choose, bool (queries, chunks)."""
    found = np.zeros((sample.q_tokens, sample.chunks), bool)
    for group, (lo, hi) in enumerate(zip(sample.group_lo.tolist(), sample.group_hi.tolist(), strict=True)):
        rows = slice(sample.unit_lo[lo] - sample.q_start, sample.unit_hi[hi - 1] - sample.q_start)
        part = slice(sample.candidate_ptr[group], sample.candidate_ptr[group + 1])
        for first, stop in zip(sample.candidate_lo[part].tolist(), sample.candidate_hi[part].tolist(), strict=True):
            found[rows, first:stop] = True
    return found

"""The dense masked float64 oracle: design section 1 for one sample at a time, in the order of its numbered points.

It shares no code with the spec compiler or with a backend. Arrays of one sample are (tokens, heads, head_dim), masks
(heads, queries, keys), selections (heads, queries, slots). `run` takes whole batches the way `moc.attention` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream
from sparsemoc.testing import oracle_random
from sparsemoc.testing.oracle_rules import Bools, Routes, anchor_mask, candidate_mask, chunk_bounds, tokens_of
from sparsemoc.testing.sample import Floats, Sample, join, split

__all__ = [
    "Answer",
    "Sample",
    "anchor_mask",
    "attention",
    "candidate_mask",
    "chunk_bounds",
    "gradients",
    "mask_of",
    "run",
    "scores",
    "select",
    "tokens_of",
]


def centroids(sample: Sample, k: Floats | None = None) -> Floats:
    """Return the mean valid key of each chunk, (chunks, kv_heads, head_dim) in float64; 0 where there is none."""
    k = (sample.k if k is None else k).astype(np.float64)
    chunk_of = tokens_of(sample.spec, sample.stream).chunk
    means = np.zeros((sample.chunks, *k.shape[1:]))
    for chunk in range(sample.chunks):
        inside = sample.valid & (chunk_of == chunk)
        if inside.any():
            means[chunk] = k[inside].mean(axis=0)
    return means


def unit_queries(sample: Sample, q: Floats | None = None) -> Floats:
    """Return the mean of the queries that are present in each unit, (units, heads, head_dim) in float64."""
    q = (sample.q if q is None else q).astype(np.float64)
    means = [q[list(unit.queries)].mean(axis=0) for unit in sample.units]
    return np.array(means).reshape(len(means), *q.shape[1:])


def scores(sample: Sample) -> Floats:
    """Return s as (heads, units, chunks) in float64: the mean query of the unit times the centroid of the chunk."""
    means = centroids(sample)[:, sample.key_heads]
    with np.errstate(invalid="ignore", over="ignore"):
        found: Floats = np.einsum("uhd,chd->huc", unit_queries(sample), means)
    return found


def rank(scores: Floats, candidates: Sequence[int]) -> list[int]:
    """Order candidates best first: NaN, then the higher score, then the lower chunk. -0 equals +0 in the comparison."""

    def key(chunk: int) -> tuple[bool, float, int]:
        nan = bool(np.isnan(scores[chunk]))
        return not nan, 0.0 if nan else -float(scores[chunk]), chunk

    return sorted(candidates, key=key)


def select(
    sample: Sample,
    scores: Floats,
    *,
    ranked: Callable[[Floats, Sequence[int]], list[int]] = rank,
    dropped: Callable[..., list[int]] = oracle_random.drop,
) -> Routes:
    """Return the selection of given scores, int32 (heads, queries, slots), ascending, -1 beyond the count.

    `ranked` and `dropped` are there for the planted wrong implementations.
    """
    dropout = sample.spec.dropout
    slots = sample.slots
    if slots is None:
        slots = min(max(sample.top_k), sample.chunks) + (dropout.into_max if dropout else 0)
    selected = np.full((sample.heads, sample.q_tokens, slots), -1, np.int32)
    for number, unit in enumerate(sample.units):
        candidates = np.flatnonzero(sample.candidates[number]).tolist()
        for head in range(sample.heads):
            routed = sorted(ranked(scores[head, number], candidates)[: sample.top_k[head]])
            if dropout and sample.training:
                assert sample.seed is not None
                place = (sample.batch, sample.head_start + head, unit.first)
                routed = dropped(dropout, routed, candidates, place, sample.seed)
            selected[head, list(unit.queries), : len(routed)] = routed
    return selected


def routed_mask(sample: Sample, selected: Routes) -> Bools:
    """Return the keys of the selected chunks, (heads, queries, keys), whatever else holds."""
    chosen = np.zeros((sample.heads, sample.q_tokens, sample.chunks + 1), bool)
    np.put_along_axis(chosen, np.where(selected < 0, sample.chunks, selected).astype(np.int64), True, axis=2)
    return np.take(chosen, tokens_of(sample.spec, sample.stream).chunk, axis=2)


def mask_of(sample: Sample, selected: Routes) -> Bools:
    """Return S as (heads, queries, keys) for a given selection, the oracle's own or a backend's."""
    spec, stream = sample.spec, sample.stream
    anchored = anchor_mask(spec, stream, sample.q_start, sample.q_tokens)
    query = np.arange(sample.q_start, sample.q_start + sample.q_tokens)[:, None]
    key = np.arange(len(sample.valid))[None, :]
    every = np.ones_like(anchored)
    if spec.dense_scope == "past":
        chunk_of = tokens_of(spec, stream).chunk
        every = anchored | (chunk_of[key] <= chunk_of[query])
    mask = np.where(sample.dense[:, None], every, anchored | routed_mask(sample, selected))
    mask &= sample.valid[key] & sample.valid_queries[:, None]
    return mask & (key <= query) if spec.causal == "token" else mask


def _product(weights: Floats, x: Floats, mask: Bools) -> Floats:
    """Return sum_j weights[h, i, j] x[j, h] over the pairs of `mask`: a NaN row of x touches only those who see it."""
    bad = ~np.all(np.isfinite(x), axis=2, keepdims=True)
    total: Floats = np.einsum("hij,jhc->ihc", weights, np.where(bad, np.zeros_like(x), x))
    for j, h in zip(*np.nonzero(bad[:, :, 0]), strict=True):
        seen = mask[h, :, j]
        total[seen, h] += weights[h, seen, j, None] * x[j, h]
    return total


def probabilities(q: Floats, k: Floats, mask: Bools, scale: float) -> tuple[Floats, Floats]:
    """Return P and lse of the masked softmax, (heads, queries, keys) and (heads, queries), in the dtype of q."""
    with np.errstate(all="ignore"):
        logits = np.einsum("ihd,jhd->hij", q, _per_query_head(k, q)) * q.dtype.type(scale)
        logits = np.where(mask, logits, -np.inf)
        top = np.where(mask.any(axis=2), logits.max(axis=2, initial=-np.inf), 0)[:, :, None]
        weights = np.where(mask, np.exp(logits - top), 0)
        total = weights.sum(axis=2)
        lse = top[:, :, 0] + np.log(total)
        weights = np.where(mask, weights / total[:, :, None], 0)
    return weights.astype(q.dtype), lse.astype(q.dtype)


def attention(q: Floats, k: Floats, v: Floats, mask: Bools, scale: float) -> tuple[Floats, Floats]:
    """Return out (queries, heads, v_head_dim) and lse (heads, queries), in the dtype of q. Empty rows: 0 and -inf."""
    weights, lse = probabilities(q, k, mask, scale)
    with np.errstate(all="ignore"):
        return _product(weights, _per_query_head(v, q), mask), lse


def gradients(
    q: Floats, k: Floats, v: Floats, mask: Bools, scale: float, d_out: Floats, d_lse: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Return dq, dk, dv of sum(out * d_out) + sum(lse * d_lse): dS = P (dP - <d_out, out> + d_lse)."""
    weights, _ = probabilities(q, k, mask, scale)
    keys, values = _per_query_head(k, q), _per_query_head(v, q)
    turned, mask_t = weights.transpose(0, 2, 1), mask.transpose(0, 2, 1)
    with np.errstate(all="ignore"):
        out = _product(weights, values, mask)
        d_weights = np.einsum("ihc,jhc->hij", d_out, values)
        delta = np.einsum("ihc,ihc->hi", d_out, out)
        if d_lse is not None:
            delta = delta - d_lse
        d_logits = np.where(mask, weights * (d_weights - delta[:, :, None]), 0) * q.dtype.type(scale)
        dq = _product(d_logits, keys, mask)
        dk = _product(d_logits.transpose(0, 2, 1), q, mask_t)
        dv = _product(turned, d_out, mask_t)
    return dq, _sum_groups(dk, k), _sum_groups(dv, v)


def _per_query_head(x: Floats, q: Floats) -> Floats:
    """Repeat key heads so that query head h finds key head h // (H_q / H_kv) at h."""
    return np.repeat(x, q.shape[1] // x.shape[1], axis=1)


def _sum_groups(dx: Floats, x: Floats) -> Floats:
    """Sum what the query heads of a group give to their key head."""
    total: Floats = dx.reshape(x.shape[0], x.shape[1], -1, x.shape[2]).sum(axis=2)
    return total


@dataclass(frozen=True, eq=False)
class Answer:
    """What the oracle says to a whole call. Packed: batch 1 in `selected`, and out and lse without a batch axis."""

    out: Floats
    lse: Floats
    selected: Routes
    mask: tuple[Bools, ...]


def solve(sample: Sample, selected: Routes | None = None) -> tuple[Floats, Floats, Routes, Bools]:
    """Return out, lse, selection and mask of one sample; a given selection is obeyed."""
    chosen = select(sample, scores(sample)) if selected is None else selected
    mask = mask_of(sample, chosen)
    q, k, v = (x.astype(np.float64) for x in (sample.q, sample.k, sample.v))
    return *attention(q, k, v, mask, sample.factor), chosen, mask


def run(
    q: Floats,
    k: Floats,
    v: Floats,
    spec: RoutingSpec,
    *,
    stream: Stream | Sequence[Stream] | None = None,
    axes: str = "bshd",
    **options: Any,
) -> Answer:
    """Answer a call of `moc.attention` in float64.

    Args:
        q, k, v: rank 4, or rank 3 packed, in the order of `axes`.
        spec: the routing.
        stream: a Stream, a tuple of them for packed arrays, or None for the spec's own.
        axes: "bshd" or "bhsd".
        options: key_lengths, q_start, scale, training, seed, batch_start, head_start.
    """
    if axes == "bhsd":
        q, k, v = (np.swapaxes(x, -3, -2) for x in (q, k, v))
    packed = q.ndim == 3
    answers = [solve(sample) for sample in split(q, k, v, spec, stream=stream, **options)]
    out = join([answer[0] for answer in answers], packed, 0)
    lse = join([answer[1] for answer in answers], packed, 1)
    selected = join([answer[2] for answer in answers], packed, 1)
    if packed:
        selected = selected[None]
    return Answer(np.swapaxes(out, -3, -2) if axes == "bhsd" else out, lse, selected, tuple(a[3] for a in answers))

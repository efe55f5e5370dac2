"""Planted wrong implementations: faults of the attention."""

# ruff: noqa: D102  the steps that variants override are described in OracleImplementation
from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsemoc.testing import oracle
from sparsemoc.testing.implementations import Forward
from sparsemoc.testing.oracle_rules import Bools, Routes
from sparsemoc.testing.planted import Planted, shortened
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Floats, Sample


class _WrongAttention(Planted):
    """Attends wrongly; its gradients are right."""

    caught_by = "forward"


class AnchorsCountTwice(_WrongAttention):
    """A key that is anchored and routed stands in the softmax twice."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        mask = self.mask(sample, selected)
        anchored = oracle.anchor_mask(sample.spec, sample.stream, sample.q_start, sample.q_tokens)
        twice = mask & anchored & oracle.routed_mask(sample, selected)
        first, second = (oracle.attention(q, k, v, one, sample.factor) for one in (mask, twice))
        with np.errstate(all="ignore"):
            lse = np.logaddexp(first[1], second[1])
            shares = [np.where(np.isneginf(one), 0, np.exp(one - lse)).T[:, :, None] for one in (first[1], second[1])]
        return shares[0] * first[0] + shares[1] * second[0], lse


class LastKeyDropped(_WrongAttention):
    """The last key of the stream is never read."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        mask = self.mask(sample, selected).copy()
        mask[:, :, -1] = False
        return oracle.attention(q, k, v, mask, sample.factor)


class ClaimsLessThanItReads(_WrongAttention):
    """The layout's mask lacks the first key, although attention reads it."""

    def forward(self, problem: Problem) -> Forward:
        got = super().forward(problem)
        mask = got.mask.copy()
        mask[..., 0] = False
        return replace(got, mask=mask)


class Unscaled(_WrongAttention):
    """Logits are not scaled."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        return oracle.attention(q, k, v, self.mask(sample, selected), 1.0)


class ScaledTwice(_WrongAttention):
    """Logits are scaled twice."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        return oracle.attention(q, k, v, self.mask(sample, selected), sample.factor**2)


class DefaultScaleAlways(_WrongAttention):
    """A given scale is ignored."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        return oracle.attention(q, k, v, self.mask(sample, selected), q.shape[2] ** -0.5)


class HeadsInterleaved(_WrongAttention):
    """Query head h reads key head h mod H_kv."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        heads = [head % k.shape[1] for head in range(sample.heads)]
        return oracle.attention(q, k[:, heads], v[:, heads], self.mask(sample, selected), sample.factor)


class RoutedLse(_WrongAttention):
    """lse is that of the routed keys alone, from before the merge with the anchors."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        mask = self.mask(sample, selected)
        out, _ = oracle.attention(q, k, v, mask, sample.factor)
        routed = mask & oracle.routed_mask(sample, selected)
        return out, oracle.attention(q, k, v, routed, sample.factor)[1]


class BinaryLse(_WrongAttention):
    """lse is a logarithm to base 2."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return out, lse / np.log(2)


class LaterKeySeen(_WrongAttention):
    """Under token causality each query sees one key too many."""

    def mask(self, sample: Sample, selected: Routes) -> Bools:
        mask = super().mask(sample, selected)
        if sample.spec.causal != "token":
            return mask
        query = np.arange(sample.q_start, sample.q_start + sample.q_tokens)[:, None]
        late = np.arange(len(sample.valid))[None, :] == query + 1
        mask |= late & sample.valid & sample.valid_queries[:, None]
        return mask


class EmptyRowsNan(_WrongAttention):
    """An empty row is 0 / 0."""

    caught_by = "empty rows"

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return np.where(np.isneginf(lse).T[:, :, None], np.nan, out), lse


class EmptyRowsMean(_WrongAttention):
    """An empty row is the mean of all values: the mask is a large negative number."""

    caught_by = "empty rows"

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return np.where(np.isneginf(lse).T[:, :, None], v.mean(axis=0)[sample.key_heads[0]], out), lse


class NoMaximum(_WrongAttention):
    """exp is taken without the maximum taken out: large logits overflow."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return np.where((lse > 88).T[:, :, None], np.nan, out), lse


class MaskedByProduct(_WrongAttention):
    """Keys out of sight are multiplied by 0: a NaN among them shows."""

    caught_by = "outside"

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return out + 0 * v[:, sample.key_heads].sum(axis=0), lse


class HalfPrecisionWeights(_WrongAttention):
    """P is rounded to bfloat16 whatever the dtype of the inputs."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return out * (1 + 2.0**-9), lse


class ShortMantissas(_WrongAttention):
    """Queries are rounded to 11 bits before the product, as tf32 does."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        return super().attention(sample, shortened(q, 11), k, v, selected)


class HalfPrecisionSums(_WrongAttention):
    """Sums are kept in float16: an error that grows, where inputs are float16 too."""

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        return out, lse.astype(np.float16).astype(np.float64)


class CallsCounted(_WrongAttention):
    """The last bit differs from call to call, as sums by atomics do."""

    caught_by = "determinism"
    calls = 0

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        out, lse = super().attention(sample, q, k, v, selected)
        self.calls += 1
        return out, lse * (1 + (self.calls % 2) * 2.0**-23)


class BatchSizeMatters(_WrongAttention):
    """A larger batch is computed in another order."""

    caught_by = "batch"

    def forward(self, problem: Problem) -> Forward:
        got = super().forward(problem)
        return replace(got, lse=got.lse * got.lse.dtype.type(1 + (len(problem.samples()) > 1) * 2.0**-22))


class StridesIgnored(Planted):
    """Memory is read as if it were contiguous, whatever the strides."""

    caught_by = "presentation"

    def forward(self, problem: Problem) -> Forward:
        shown = problem.present(problem.arrays.q)
        base = shown if shown.base is None else shown.base
        flat = np.ascontiguousarray(base).reshape(-1)[: shown.size]
        if flat.size < shown.size:
            flat = np.resize(flat, shown.size)
        return super().forward(problem.with_arrays(q=problem.restore(flat.reshape(shown.shape))))

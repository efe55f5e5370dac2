"""How far a backend may be from the float64 oracle: the bound on scores, and the budgets of out, lse and gradients.

**Scores.** u = 2^-24 is the unit roundoff of float32. A backend sums the n valid keys of a chunk in float32 in any
order, divides by n, and multiplies with the query (the mean of the b present members of its unit) in float32 over d
products, in any order. By the usual first-order chain (Higham, "Accuracy and stability", section 3.1): n - 1 additions
and a division for the centroid, b - 1 and a division for the query, d for the product, 2 for inputs that are wider
than float32, and 16 allowed for a product made of high and low halves (its terms are right to 2^-20). So

    |computed s - s|  <=  bound
    bound  =  1.01 (n + b + d + 18) u  sum_l mean|q_l| mean|k_l|  +  2^-126 (d + sum_l (mean|q_l| + mean|k_l|))

with the means of absolute values over the members and over the keys; the last term pays for subnormals flushed to 0.
The bound is infinite where a float32 sum may overflow. It is 0, and the comparison exact, where no rounding can happen:
integer keys and queries with sums below 2^16, means that are multiples of 2^-8, and a product of absolute values below
2^8; there ties are real, and the lower chunk must win. It depends on the numbers alone, whatever the input dtype.

Chunk e **surely precedes** chunk i if e is NaN and i is not, if both are NaN (or both exact and equal) and e < i, or if
s_e - s_i > bound_e + bound_i. A row is **decidable** where every chunk that the oracle takes surely precedes every
candidate it leaves.

**Outputs.** Errors are measured per element against a magnitude in which the conditioning is already paid for, so that
a small row cannot hide behind a large one. With P the softmax, cond_i = 1 + |scale| max_j sum_l |q_il| |k_jl|:

    out   cond_i sum_j P_ij |v_j|              lse   cond_i + |lse_i|
    dv    sum_i P_ij cond_i |do_i|             g_ij = P_ij cond_i (|do_i| . (|v_j| + sum_j P_ij |v_j|) + |d_lse_i|)
    dq    |scale| sum_j g_ij |k_j|             dk    |scale| sum_i g_ij |q_i|

    error = max (|x - oracle| - tiny) / magnitude      budget = 2 * error of the same-dtype dense computation + band
    band = 2 u_out + u_acc (16 + 2 sqrt(d) + 2 sqrt(L_k) + 2 sqrt(L_q heads))

The same-dtype dense computation takes the inputs as given, works in float32 (float64 for float64), keeps P there, and
rounds its results to the output dtype, of unit roundoff u_out; u_acc is that of the working dtype. The band pays for
one other rounding of the result, for a P rounded to the input dtype, and for another order of summation; tiny is the
output dtype's smallest number, or 2^-100 (float64: 2^-960), below which P may underflow. Where u_acc cond_i > 2^-7, an
ulp of a logit moves P by percents and the linear estimate ends: such rows are held to the pattern of NaN and infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemoc.testing import oracle
from sparsemoc.testing.oracle_rules import Bools
from sparsemoc.testing.problems import dtype_of
from sparsemoc.testing.sample import Floats, Sample

#: Unit roundoff by dtype name.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

_U = ROUNDOFF["float32"]
_TINY = 2.0**-126
_OVERFLOW = 2.0**126


@dataclass(frozen=True, eq=False)
class Scores:
    """The oracle's scores, (heads, units, chunks), with the bound on a float32 computation of them."""

    values: Floats
    bounds: Floats

    def precedes(self, head: int, unit: int, first: list[int], second: list[int]) -> Bools:
        """Return as (first, second) which chunks surely precede which."""
        one, other = np.array(first, int)[:, None], np.array(second, int)[None, :]
        s, b = self.values[head, unit], self.bounds[head, unit]
        nan_one, nan_other = np.isnan(s[one]), np.isnan(s[other])
        with np.errstate(invalid="ignore"):
            above = s[one] - s[other] > b[one] + b[other]
            level = (s[one] == s[other]) & (b[one] + b[other] == 0)
        tied = (level | (nan_one & nan_other)) & (one < other)
        found: Bools = (nan_one & ~nan_other) | tied | (above & ~nan_one & ~nan_other)
        return found


def scores_of(sample: Sample) -> Scores:
    """Return the oracle's scores of a sample and their bounds, by the formula of the module's docstring."""
    q, k = (np.abs(x.astype(np.float64)) for x in (sample.q, sample.k))
    mean_q = oracle.unit_queries(sample, q)
    mean_k = oracle.centroids(sample, k)
    chunk_of = oracle.tokens_of(sample.spec, sample.stream).chunk
    n = np.bincount(chunk_of[sample.valid], minlength=sample.chunks)
    b = np.array([len(unit.queries) for unit in sample.units], int)[:, None]
    d = q.shape[2]
    mean_k = mean_k[:, sample.key_heads]
    with np.errstate(all="ignore"):
        product = np.einsum("uhd,chd->huc", mean_q, mean_k)
        sums = mean_q.sum(axis=2).T[:, :, None] + mean_k.sum(axis=2).T[:, None, :]
        bounds = 1.01 * (n + b + d + 18) * _U * product + _TINY * (d + sums)
        largest_k = (mean_k.max(axis=2) * n[:, None]).T[:, None, :]
        largest_q = (mean_q.max(axis=2) * b).T[:, :, None]
        bounds = np.where(np.maximum(np.maximum(product, largest_k), largest_q) < _OVERFLOW, bounds, np.inf)
    bounds = np.where(_exact(sample, mean_q, mean_k, n, b), 0.0, bounds)
    return Scores(oracle.scores(sample), bounds)


def _exact(sample: Sample, mean_q: Floats, mean_k: Floats, n: Floats, b: Floats) -> Bools:
    """Return as (heads, units, chunks) where no float32 computation of the score can round."""
    if not (_whole(sample.q[sample.valid_queries]) and _whole(sample.k[sample.valid])):
        return np.zeros((sample.heads, len(sample.units), sample.chunks), bool)
    signed_q = oracle.unit_queries(sample) * 2**8
    signed_k = oracle.centroids(sample)[:, sample.key_heads] * 2**8
    fine_q = (signed_q == np.round(signed_q)).all(axis=2) & ((mean_q * b[:, :, None]).max(axis=2) < 2**16)
    fine_k = (signed_k == np.round(signed_k)).all(axis=2) & ((mean_k * n[:, None, None]).max(axis=2) < 2**16)
    small: Bools = np.einsum("uhd,chd->huc", mean_q, mean_k) < 2**8
    small &= fine_q.T[:, :, None] & fine_k.T[:, None, :]
    return small


def _whole(x: Floats) -> bool:
    x = x.astype(np.float64)
    return bool(np.isfinite(x).all() and (x == np.round(x)).all())


def decidable(sample: Sample) -> tuple[int, int]:
    """Return how many (head, unit) rows of a sample are decidable, out of those with something to choose."""
    found, total = 0, 0
    table = scores_of(sample)
    for unit, allowed in enumerate(sample.candidates):
        candidates = np.flatnonzero(allowed).tolist()
        for head in range(sample.heads):
            order = oracle.rank(table.values[head, unit], candidates)
            kept, left = order[: sample.top_k[head]], order[sample.top_k[head] :]
            if kept and left:
                found += bool(table.precedes(head, unit, kept, left).all())
                total += 1
    return found, total


@dataclass(frozen=True)
class Grads:
    """Out, lse and gradients of one sample, or their magnitudes."""

    out: Floats
    lse: Floats
    dq: Floats
    dk: Floats
    dv: Floats


def dense(sample: Sample, mask: Bools, d_out: Floats, d_lse: Floats, dtype: type) -> Grads:
    """Compute everything densely in `dtype`, without rounding of the results."""
    q: Floats = sample.q.astype(dtype)
    k: Floats = sample.k.astype(dtype)
    v: Floats = sample.v.astype(dtype)
    forward = oracle.attention(q, k, v, mask, sample.factor)
    grads = oracle.gradients(q, k, v, mask, sample.factor, d_out.astype(dtype), d_lse.astype(dtype))
    return Grads(*forward, *grads)


def rounded(results: Grads, dtype: str) -> Grads:
    """Round the results as a backend must hand them out: lse in float32, or float64, the rest in `dtype`."""
    with np.errstate(over="ignore"):
        out, dq, dk, dv = (x.astype(dtype_of(dtype)) for x in (results.out, results.dq, results.dk, results.dv))
        lse = results.lse.astype(np.float64 if dtype == "float64" else np.float32)
    return Grads(out, lse, dq, dk, dv)


def magnitudes(sample: Sample, mask: Bools, d_out: Floats, d_lse: Floats, u_acc: float) -> Grads:
    """Return the magnitudes of the module's docstring; infinite, or NaN, where nothing can be said."""
    q, k, v, d_out, d_lse = (x.astype(np.float64) for x in (sample.q, sample.k, sample.v, d_out, d_lse))
    p, lse = oracle.probabilities(q, k, mask, sample.factor)
    heads, scale = sample.key_heads, abs(sample.factor)
    q, k, v, d_out, d_lse = (np.abs(np.nan_to_num(x)) for x in (q, k, v, d_out, d_lse))
    p = np.nan_to_num(p)
    with np.errstate(all="ignore"):
        k_wide, v_wide = k[:, heads], v[:, heads]
        sizes = np.where(mask, np.einsum("ihd,jhd->hij", q, k_wide), 0)
        cond = 1 + scale * sizes.max(axis=2, initial=0)
        cond = np.where(cond * u_acc > 2.0**-7, np.inf, cond)
        p_cond = p * cond[:, :, None]
        out = np.einsum("hij,jhc->ihc", p, v_wide)
        g = np.einsum("ihc,jhc->hij", d_out, v_wide) + np.einsum("ihc,ihc->hi", d_out, out)[:, :, None]
        g = p_cond * (g + d_lse[:, :, None])
        dk = scale * np.einsum("hij,ihd->jhd", g, q)
        dv = np.einsum("hij,ihc->jhc", p_cond, d_out)
        group = (len(k), k.shape[1], -1)
        return Grads(
            out * cond.T[:, :, None],
            np.where(np.isfinite(lse), cond + np.abs(lse), 1),
            scale * np.einsum("hij,jhd->ihd", g, k_wide),
            dk.reshape(*group, k.shape[2]).sum(axis=2),
            dv.reshape(*group, v.shape[2]).sum(axis=2),
        )


def unit_roundoff(dtype: str) -> float:
    """Return u_acc of an input dtype."""
    return ROUNDOFF["float64" if dtype == "float64" else "float32"]


def band(sample: Sample, name: str, dtype: str) -> float:
    """Return the rounding band of the module's docstring."""
    u_acc = unit_roundoff(dtype)
    u_out = u_acc if name == "lse" else ROUNDOFF[dtype]
    lengths = (sample.q.shape[2], len(sample.k), sample.q_tokens * sample.heads)
    return 2 * u_out + u_acc * (16 + 2 * float(np.sqrt(lengths).sum()))


def limits(dtype: Any) -> tuple[float, float]:
    """Return the difference that never counts and the size from which a result may overflow in an output dtype."""
    if dtype == np.float64:
        return 2.0**-960, float(np.finfo(np.float64).max) / 2
    info = np.finfo(dtype) if dtype.kind == "f" and dtype.itemsize in (2, 4) else np.finfo(np.float32)
    return max(2.0**-100, float(info.smallest_subnormal)), float(info.max) * 0.99


def error(x: Floats, truth: Floats, magnitude: Floats) -> float:
    """Return max (|x - truth| - tiny) / magnitude over the places where it means something, infinite for 1 / 0."""
    tiny, most = limits(x.dtype)
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        over = np.maximum(np.abs(x - truth) - tiny, 0)
        counts = np.isfinite(truth) & (np.abs(truth) < most) & np.isfinite(magnitude) & (over > 0)
        ratios: list[float] = (over[counts] / magnitude[counts]).tolist()
    return max(ratios, default=0.0)

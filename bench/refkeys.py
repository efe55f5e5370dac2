"""The check of dk and dv: sampled keys against float64, and two identities over all of them.

dk and dv of a key depend on every query that sees it. A sampled key is held against all of those, from the lse and out
that they were given: with p_i = exp(scale <q_i, k_j> - lse_i),

    dv_j = sum_i p_i do_i        dk_j = scale sum_i p_i (<do_i, v_j> - <do_i, out_i>) q_i

Errors are norms of rows of head_dim elements, over the norm of the true row, or what terms of its size and random sign
would add up to, if that is more; a result may be twice as wrong as a plain computation in the dtype, plus a band of
rounding. The identities hold whatever was routed, as long as every query sees a key: the dv of a head's keys add up to
the d_out of its queries, and sum <q, dq> = sum <k, dk>.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.refcheck import Floats, Question, RefcheckError
from sparsemoc.spec.plan import Plan
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.problems import dtype_of

#: Sampled keys.
KEYS = 16
#: Most relative difference of the two sides of an identity, each a sum of millions of rounded numbers, in float32.
IDENTITY = 1e-4

Bools = NDArray[np.bool_]


def check(
    asked: Question, plan: Plan, selected: NDArray[np.int32], results: Mapping[str, Floats], keys: int = KEYS
) -> dict[str, Any]:
    """Check dk and dv on sampled keys of every key head.

    Args:
        asked: the problem.
        plan: of its spec.
        selected: the routes, (1, heads, queries, slots).
        results: "dk", "dv" (1, tokens, kv_heads, head_dim), "out" and "lse" of the forward.
        keys: how many keys to sample.

    Returns:
        "dk" and "dv", each with "error" and "budget", as they go into a record.

    Raises:
        RefcheckError: a value is wrong.
    """
    x = asked.inputs
    tokens = x.k.shape[1]
    places = np.unique(np.linspace(0, tokens - 1, keys).astype(int))
    anchored = _anchored(plan, places)
    chunks = oracle.tokens_of(asked.spec, asked.stream).chunk[places]
    worst = {"dk": [0.0, 0.0], "dv": [0.0, 0.0]}
    for kv in range(x.k.shape[2]):
        heads = range(kv * asked.group, (kv + 1) * asked.group)
        seen = {head: anchored | (selected[0, head][:, :, None] == chunks).any(axis=1) for head in heads}
        truth, sizes = _sums(asked, kv, seen, places, results, np.float64)
        plain, _ = _sums(asked, kv, seen, places, results, np.float32)
        for name, place in (("dk", 0), ("dv", 1)):
            rounded = plain[place].astype(dtype_of(asked.dtype))
            for index, found in enumerate((results[name][0, places, kv], rounded)):
                worst[name][index] = max(worst[name][index], _error(found, truth[place], sizes[place]))
    return _judged(asked, worst)


def _sums(
    asked: Question, kv: int, seen: Mapping[int, Bools], places: Any, results: Mapping[str, Floats], dtype: Any
) -> tuple[list[Floats], list[Floats]]:
    """Return dk and dv of sampled keys, and what terms of their sizes and random signs would add up to."""
    x, scale = asked.inputs, float(asked.inputs.q.shape[3]) ** -0.5
    k, v = x.k[0, places, kv].astype(dtype), x.v[0, places, kv].astype(dtype)
    sums, sizes = ([np.zeros_like(k), np.zeros_like(v)] for _ in range(2))
    for head, mask in seen.items():
        q, d_out, out = (y[0, :, head].astype(dtype) for y in (x.q, x.d_out, results["out"]))
        with np.errstate(over="ignore"):
            p = np.where(mask, np.exp(q @ k.T * dtype(scale) - results["lse"][0, head].astype(dtype)[:, None]), 0)
        products, delta = d_out @ v.T, np.einsum("ic,ic->i", d_out, out)[:, None]
        slopes, largest = p * (products - delta) * dtype(scale), p * (np.abs(products) + np.abs(delta)) * dtype(scale)
        for place, (weights, size, rows) in enumerate(((slopes, largest, q), (p, p, d_out))):
            sums[place] += weights.T @ rows
            sizes[place] += np.sqrt((size**2).T @ rows**2)
    return sums, sizes


def _anchored(plan: Plan, places: NDArray[np.int64]) -> Bools:
    """Return as (queries, places) the anchored pairs, and those of dense queries."""
    sample = plan.samples[0]
    found = sample.anchor_rectangles
    seen = np.zeros((sample.q_tokens, len(places)), bool)
    query = sample.q_start + np.arange(sample.q_tokens)[:, None]
    for q_lo, q_hi, k_lo, k_hi, banded in zip(
        found.q_lo, found.q_hi, found.k_lo, found.k_hi, found.banded, strict=True
    ):
        rows = slice(q_lo - sample.q_start, q_hi - sample.q_start)
        inside = np.broadcast_to((k_lo <= places) & (places < k_hi), (q_hi - q_lo, len(places)))
        near = np.abs(query[rows] - places) <= sample.reach
        seen[rows] |= inside & near if banded else inside
    return seen & (places <= query) if sample.token_causal else seen


def _error(x: Floats, truth: Floats, size: Floats) -> float:
    """Return the largest relative error of a row; NaN counts as infinitely wrong."""
    wide = x.astype(np.float64)
    norms = np.maximum(np.linalg.norm(truth, axis=1), np.linalg.norm(size, axis=1)).clip(1e-30)
    return float(np.nan_to_num(np.linalg.norm(wide - truth, axis=1) / norms, nan=np.inf).max())


def _judged(asked: Question, worst: Mapping[str, list[float]]) -> dict[str, Any]:
    terms = asked.queries * asked.group
    working = tolerance.ROUNDOFF["float32"] * (16 + 2 * float(np.sqrt(terms) + np.sqrt(asked.inputs.q.shape[3])))
    told = {}
    for name, (error, plain) in worst.items():
        # out enters as it was rounded; P and dS may be, before they are multiplied.
        budget = 2 * plain + 4 * tolerance.ROUNDOFF[asked.dtype] + working
        told[name] = {"error": error, "budget": budget}
        if not error <= budget:
            raise RefcheckError(f"{asked.name}: {name} is off by {error:.3g}, the budget is {budget:.3g}")
    return told


def check_identities(asked: Question, grads: Mapping[str, Floats]) -> dict[str, float]:
    """Check the two identities on "dq", "dk" and "dv".

    Raises:
        RefcheckError: the sides differ.
    """
    x = asked.inputs
    most = IDENTITY + (0 if asked.dtype == "float32" else tolerance.ROUNDOFF[asked.dtype])
    found = {"sum_dv": 0.0, "q_dq_k_dk": 0.0}
    for kv in range(x.k.shape[2]):
        heads = slice(kv * asked.group, (kv + 1) * asked.group)
        d_out, dv = x.d_out[0, :, heads].astype(np.float64), grads["dv"][0, :, kv].astype(np.float64)
        values = np.abs(dv.sum(0) - d_out.sum((0, 1))) / np.abs(d_out).sum((0, 1))
        queries = x.q[0, :, heads].astype(np.float64) * grads["dq"][0, :, heads]
        keys = x.k[0, :, kv].astype(np.float64) * grads["dk"][0, :, kv]
        paid = max(np.abs(queries).sum(), np.abs(keys).sum())
        found["sum_dv"] = max(found["sum_dv"], float(values.max()))
        found["q_dq_k_dk"] = max(found["q_dq_k_dk"], float(abs(queries.sum() - keys.sum()) / paid))
    for name, difference in found.items():
        if not difference <= most:
            raise RefcheckError(f"{asked.name}: the sides of {name} differ by {difference:.3g} of their size")
    return found

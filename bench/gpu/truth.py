"""The check of results at full size: sampled queries and keys against float64, under the oracle's own rules.

No array of (queries, keys) of the whole problem is made. For a sampled query the oracle says which chunks it may choose
from and which keys it then sees: routes, out, lse and dq follow. A sampled key is held against every query that sees
it: dk and dv follow, from the lse and out that the queries were given. As in the conformance suite, a result may be
twice as wrong as a plain computation in the same dtype, plus a band of rounding. Errors are norms of rows of head_dim
elements, over the norm of the true row, or what terms of its size and random sign would add up to, if that is more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsemoc as moc
from bench.gpu.settings import Arrays, Setting
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.sample import Sample

#: Sampled queries, and keys; each counts once for every head.
ROWS = 16


class WrongError(Exception):
    """A result is wrong: its time must not be published."""


@dataclass
class Errors:
    """The largest error of each result so far, and of the plain computation beside it."""

    dtype: str
    found: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, x: Any, truth: Any, plain: Any, size: Any) -> None:
        """Take in rows, (rows, head_dim); NaN counts as infinitely wrong."""
        size = (truth.norm(dim=1).maximum(size.norm(dim=1)))[:, None].clamp(min=1e-30)
        for place, value in enumerate((x, plain)):
            error = float(((value.double() - truth) / size).norm(dim=1).nan_to_num(nan=np.inf).max())
            worst = self.found.setdefault(name, [0.0, 0.0])
            worst[place] = max(worst[place], error)

    def judged(self, terms: int, head_dim: int) -> dict[str, dict[str, float]]:
        """Return errors and budgets of sums of so many terms.

        Raises:
            WrongError: an error above its budget.
        """
        working = tolerance.ROUNDOFF["float32"] * (16 + 2 * float(np.sqrt(terms) + np.sqrt(head_dim)))
        told = {}
        for name, (error, plain) in self.found.items():
            output = tolerance.ROUNDOFF["float32" if name == "lse" else self.dtype]
            told[name] = {"error": error, "budget": 2 * plain + 2 * output + working}
            if not error <= told[name]["budget"]:
                raise WrongError(f"{name} is off by {error:.3g}, the budget is {told[name]['budget']:.3g}")
        return told


def check(
    setting: Setting, x: Arrays, layout: moc.Layout, results: dict[str, Any], *, routes: bool = True
) -> dict[str, Any]:
    """Check routes, and out, lse, dq, dk and dv where given; dk and dv need out and lse beside them.

    Args:
        setting: the problem, without padding.
        x: its arrays, batch 1.
        layout: of the whole call.
        results: "out", "dq", "dk", "dv" (1, tokens, heads or kv_heads, head_dim), "lse" (1, heads, tokens).
        routes: whether the layout was routed, and its choices are to be checked.

    Returns:
        The errors, as they go into a row.

    Raises:
        WrongError: a route or a value is wrong.
    """
    rows = _Rows.sampled(setting, layout, routes)
    errors = Errors(str(x.q.dtype).removeprefix("torch."))
    group = x.q.shape[2] // x.k.shape[2]
    for kv_head in range(x.k.shape[2]):
        keys, values = (array[0, :, kv_head].double() for array in (x.k, x.v))
        heads = range(kv_head * group, (kv_head + 1) * group)
        for head in heads:
            if routes:
                rows.check_routes(head, x.q[0, rows.positions, head].double(), keys)
            _check_queries(rows, head, x, keys, values, results, errors)
        if "dv" in results:
            _check_keys(rows, heads, kv_head, x, keys, values, results, errors)
    told = errors.judged(setting.tokens, setting.head_dim)
    return {"rows": len(rows.positions) * setting.heads, "routes checked": routes, "errors": told}


@dataclass(frozen=True, eq=False)
class _Rows:
    """Sampled positions: what the oracle says of their queries, and the plan of their keys.

    Attributes:
        positions: (rows,).
        candidates: (rows, chunks) chunks that each may take.
        seen: (heads, rows, keys) keys that each sees, given its routes.
        anchored: (tokens, rows) which queries see each position as a key by their anchors.
        chunk_of: (tokens,).
    """

    layout: moc.Layout
    positions: Any
    candidates: Any
    seen: Any
    anchored: Any
    chunk_of: Any

    @classmethod
    def sampled(cls, setting: Setting, layout: moc.Layout, routes: bool) -> _Rows:
        """Ask the oracle; of candidates only where routes are to be checked, for it takes its time over many chunks."""
        import torch

        device = layout.selected.device
        positions = np.unique(np.linspace(0, setting.tokens - 1, ROWS).astype(int))
        selected = layout.selected[0][:, torch.from_numpy(positions).to(device)].cpu().numpy()
        query = np.zeros((1, setting.heads, 1))
        samples = [Sample(setting.spec, setting.stream, query, query, query, q_start=p) for p in positions.tolist()]
        none = np.zeros(layout.plan.chunks, bool)
        candidates = [sample.candidates[0] if routes and sample.units else none for sample in samples]
        seen = [oracle.mask_of(sample, selected[:, row : row + 1])[:, 0] for row, sample in enumerate(samples)]
        chunk_of = oracle.tokens_of(setting.spec, setting.stream).chunk
        tables = positions, np.array(candidates), np.stack(seen, 1), _anchored(layout.plan, positions), chunk_of
        return cls(layout, *(torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in tables))

    def check_routes(self, head: int, q: Any, keys: Any) -> None:
        """Raise unless each query has taken its best candidates, as far as float32 scores can tell."""
        import torch

        chunks = self.candidates.shape[1]
        counts = torch.bincount(self.chunk_of, minlength=chunks).double()
        means, sizes = (
            torch.zeros((chunks, keys.shape[1]), dtype=keys.dtype, device=keys.device).index_add_(0, self.chunk_of, x)
            / counts[:, None]
            for x in (keys, keys.abs())
        )
        selected = self.layout.selected[0, head, self.positions].long()
        taken = torch.zeros((len(selected), chunks + 1), dtype=torch.bool, device=keys.device)
        taken = taken.scatter_(1, selected.where(selected >= 0, chunks), True)[:, :chunks]
        most = self.layout.plan.spec.top_k_of(self.layout.heads)[head]
        wanted = self.candidates.sum(1).clamp(max=most)
        if (
            not ((taken.sum(1) == wanted) & ((selected >= 0).sum(1) == wanted)).all()
            or (taken & ~self.candidates).any()
        ):
            raise WrongError(f"head {head}: a query's chunks are not as many of its candidates as it may take")
        scores = q @ means.T
        # The bound of sparsemoc.testing.tolerance on a float32 score, for one query and nothing near the subnormals.
        bound = 1.01 * (counts + 1 + q.shape[1] + 18) * 2.0**-24 * (q.abs() @ sizes.T)
        best_left = (scores - bound).where(self.candidates & ~taken, -torch.inf).amax(1)
        if (best_left > (scores + bound).where(taken, torch.inf).amin(1)).any():
            raise WrongError(f"head {head}: a chunk with a lower score was taken")

    def seen_by(self, head: int) -> Any:
        """Return as (tokens, rows) which queries of a head see each sampled position as a key."""
        chosen = self.layout.selected[0, head]
        seen = self.anchored.clone()
        for slot in range(chosen.shape[1]):
            seen |= chosen[:, slot : slot + 1] == self.chunk_of[self.positions]
        return seen


def _anchored(plan: moc.Plan, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return as (tokens, positions) the anchored pairs, from the rectangles of a plan."""
    sample = plan.samples[0]
    found = sample.anchor_rectangles
    seen = np.zeros((sample.q_tokens, len(positions)), bool)
    query = np.arange(sample.q_tokens)[:, None]
    for q_lo, q_hi, k_lo, k_hi, banded in zip(
        found.q_lo, found.q_hi, found.k_lo, found.k_hi, found.banded, strict=True
    ):
        inside = np.broadcast_to((k_lo <= positions) & (positions < k_hi), (q_hi - q_lo, len(positions)))
        near = np.abs(query[q_lo:q_hi] - positions) <= sample.reach
        seen[q_lo:q_hi] |= inside & near if banded else inside
    return seen & (positions <= query) if sample.token_causal else seen


def _check_queries(
    rows: _Rows, head: int, x: Arrays, keys: Any, values: Any, results: dict[str, Any], errors: Errors
) -> None:
    """Hold out, lse and dq of the sampled queries of a head against float64, and a plain computation beside."""
    import torch

    at, mask = rows.positions, rows.seen[head]
    q, d_out = x.q[0, at, head].double(), x.d_out[0, at, head].double()
    scale = q.shape[1] ** -0.5
    both = []
    for dtype in (torch.float64, torch.float32):
        rounded = _rounding(dtype, x.q.dtype)
        k, v = keys.to(dtype), values.to(dtype)
        logits = (q.to(dtype) @ k.T * scale).where(mask, -torch.inf)
        lse = logits.logsumexp(1)
        p = (logits - lse[:, None]).exp().nan_to_num(0)
        out = rounded(rounded(p) @ v)
        products = d_out.to(dtype) @ v.T
        delta = (d_out.to(dtype) * out).sum(1, keepdim=True)
        dq = rounded(scale * rounded(p * (products - delta)) @ k)
        both.append((out, lse, dq, p, p * (products.abs() + delta.abs())))
    (out, lse, dq, p, slopes), plain = both
    sizes = _size(p, values), 1 + lse.abs()[:, None], scale * _size(slopes, keys)
    for index, (name, truth) in enumerate((("out", out), ("lse", lse[:, None]), ("dq", dq))):
        if name in results:
            got = results[name][0, head, at, None] if name == "lse" else results[name][0, at, head]
            errors.add(name, got, truth, plain[index].reshape(truth.shape), sizes[index])


def _check_keys(
    rows: _Rows, heads: range, kv_head: int, x: Arrays, keys: Any, values: Any, results: dict[str, Any], errors: Errors
) -> None:
    """Hold dk and dv of the sampled keys of a key head against float64, and a plain computation beside."""
    import torch

    at, scale = rows.positions, x.q.shape[3] ** -0.5
    sums = {dtype: [torch.zeros_like(keys[at], dtype=dtype) for _ in range(4)] for dtype in (keys.dtype, torch.float32)}
    for head in heads:
        seen = rows.seen_by(head)
        lse = results["lse"][0, head].double()[:, None]
        for dtype, (dk, dv, dk_size, dv_size) in sums.items():
            rounded = _rounding(dtype, x.q.dtype)
            q, d_out, out = (y[0, :, head].to(dtype) for y in (x.q, x.d_out, results["out"]))
            p = (q @ keys[at].to(dtype).T * scale - lse.to(dtype)).exp().where(seen, 0)
            products, delta = d_out @ values[at].to(dtype).T, (d_out * out).sum(1, keepdim=True)
            dk += scale * rounded(p * (products - delta)).T @ q
            dv += rounded(p).T @ d_out
            dk_size += scale * _size((p * (products.abs() + delta.abs())).T, q)
            dv_size += _size(p.T, d_out)
    truth, plain = sums[keys.dtype], sums[torch.float32]
    for index, name in enumerate(("dk", "dv")):
        rounded_sum = plain[index].to(x.q.dtype)
        errors.add(name, results[name][0, at, kv_head], truth[index], rounded_sum, truth[index + 2])


def _rounding(working: Any, given: Any) -> Callable[[Any], Any]:
    """Return how the plain computation rounds what enters a matrix product, as every kernel does; float64 does not."""
    import torch

    return (lambda x: x) if working is torch.float64 else (lambda x: x.to(given).to(working))


def _size(weights: Any, x: Any) -> Any:
    """Return what terms of this size and of random sign would add up to."""
    return (weights**2 @ x**2).sqrt()

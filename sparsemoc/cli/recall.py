"""How good the routes are: the dense attention mass they keep, the error against the oracle, the time they save."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsemoc import api
from sparsemoc.cli.features import Tokens
from sparsemoc.cli.progress import Advance
from sparsemoc.spec.anchors import first
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.sample_plan import SamplePlan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Seconds that measuring dense attention may take before the rest is extrapolated.
DENSE_SECONDS = 8.0


@dataclass(frozen=True)
class Recall:
    """Shares of the mass that dense attention puts on the keys, mean over sampled queries and heads.

    Attributes:
        queries: number of sampled queries.
        kept: on anchors and routes together: what the layout recalls.
        anchors: on anchors alone.
        random: what as many chunks, drawn at random from the candidates, would keep on average, anchors included.
        best: what the best choice of as many candidates would keep, anchors included.
    """

    queries: int
    kept: float
    anchors: float
    random: float
    best: float


@dataclass(frozen=True)
class Mass:
    """One query's dense attention mass, per head: on its anchors; on each chunk outside them."""

    anchors: Floats
    chunks: Floats


def dense_mass(tokens: Tokens, plan: SamplePlan, position: int) -> Mass:
    """Return where dense attention of the query at a stream position puts its mass: (heads,) and (heads, chunks)."""
    stop = position + 1 if plan.token_causal else plan.k_tokens
    weights = np.zeros((tokens.q.shape[2], plan.k_tokens))
    weights[:, :stop] = softmax(logits(tokens, position, slice(0, stop)))
    anchors = plan.anchors(position)
    on_anchors = weights[:, anchors].sum(axis=1)
    weights[:, anchors] = 0
    return Mass(on_anchors, np.add.reduceat(weights, plan.chunk_bounds[:-1], axis=1))


def logits(tokens: Tokens, position: int, keys: slice | Ints) -> Floats:
    """Return the logits of the query at a stream position against some keys, (heads, keys)."""
    scale = tokens.q.shape[3] ** -0.5
    found: Floats = np.einsum("hd,jhd->hj", tokens.q[0, position], tokens.k[0, keys]).astype(np.float64)
    return np.asarray(found * scale)


def softmax(rows: Floats) -> Floats:
    """Return the softmax over the last axis."""
    weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def sparse_weights(tokens: Tokens, plan: SamplePlan, layout: Layout, position: int, head: int) -> Floats:
    """Return the attention of one query and head over all keys, (keys,): 0 outside its anchors and routes."""
    routed = layout.selected[0, head, position - plan.q_start]
    seen = np.zeros(plan.k_tokens, bool)
    seen[plan.anchors(position)] = True
    for chunk in routed[routed >= 0]:
        seen[plan.chunk_bounds[chunk] : plan.chunk_stop[chunk]] = True
    if plan.token_causal:
        seen[position + 1 :] = False
    keys = np.flatnonzero(seen)
    weights = np.zeros(plan.k_tokens)
    weights[keys] = softmax(logits(tokens, position, keys)[head])
    return weights


def routing_queries(plan: SamplePlan) -> Ints:
    """Return the stream positions of the queries that have routes."""
    runs = np.flatnonzero(~plan.run_dense)
    spans = [np.arange(plan.run_lo[run], plan.run_hi[run]) for run in runs]
    return np.concatenate(spans) if spans else np.zeros(0, np.int64)


def measure_recall(tokens: Tokens, layout: Layout, sample: int, advance: Advance) -> Recall:
    """Return the shares over `sample` queries, evenly spread over those that route."""
    plan = layout.plan.samples[0]
    positions = _spread(routing_queries(plan), sample)
    rows = []
    for done, position in enumerate(positions.tolist(), start=1):
        mass = dense_mass(tokens, plan, position)
        candidates = plan.candidates(position)
        for head, routed in enumerate(layout.selected[0, :, position - plan.q_start]):
            anchors, chunks = mass.anchors[head], mass.chunks[head]
            routed = routed[routed >= 0]
            offered = np.sort(chunks[candidates])[::-1]
            average = offered.mean() * len(routed) if len(offered) else 0.0
            rows.append(
                (anchors + chunks[routed].sum(), anchors, anchors + average, anchors + offered[: len(routed)].sum())
            )
        advance(done)
    kept, anchors, random, best = np.mean(rows, axis=0).tolist() if rows else (1.0,) * 4
    return Recall(len(positions), kept, anchors, random, best)


def _spread(positions: Ints, count: int) -> Ints:
    """Return `count` of the positions: one drawn from each of as many equal parts, always the same."""
    if len(positions) <= count:
        return positions
    random = np.random.Generator(np.random.Philox(key=0))
    return positions[((np.arange(count) + random.random(count)) * len(positions) / count).astype(np.int64)]


@dataclass(frozen=True)
class OracleError:
    """The run against the dense float64 oracle on sampled queries.

    Attributes:
        queries: number of sampled queries.
        largest, rms: of out - oracle; `scale` is the rms of the oracle's out, to judge them by.
        same_routes: share of the (query, head) rows whose selection equals the oracle's.
    """

    queries: int
    largest: float
    rms: float
    scale: float
    same_routes: float


def measure_error(
    tokens: Tokens, spec: RoutingSpec, layout: Layout, out: NDArray[np.float32], sample: int, advance: Advance
) -> OracleError:
    """Compare out with the oracle on `sample` stretches of whole routing units."""
    from sparsemoc.testing import oracle

    plan = layout.plan.samples[0]
    wanted, found, same = [], [], []
    for done, (lo, hi) in enumerate(_stretches(plan, sample), start=1):
        q, k, v = (x.astype(np.float64) for x in (tokens.q[0, lo:hi], tokens.k[0], tokens.v[0]))
        case = oracle.Sample(spec, tokens.stream, q, k, v, q_start=lo, slots=layout.plan.slots)
        selected = oracle.select(case, oracle.scores(case))
        wanted.append(oracle.attention(q, k, v, oracle.mask_of(case, selected), case.factor)[0])
        found.append(out[0, lo:hi])
        same.append((selected == layout.selected[0, :, lo:hi]).all(axis=-1).ravel())
        advance(done)
    expected, difference = np.concatenate(wanted), np.concatenate(found) - np.concatenate(wanted)
    return OracleError(
        queries=len(expected),
        largest=float(np.abs(difference).max()),
        rms=float(np.sqrt(np.mean(difference**2))),
        scale=float(np.sqrt(np.mean(expected**2))),
        same_routes=float(np.concatenate(same).mean()),
    )


def _stretches(plan: SamplePlan, count: int) -> list[tuple[int, int]]:
    """Return stretches of queries, each a whole routing unit; of all queries, where none routes."""
    if not len(plan.unit_lo):
        return [(plan.q_start, min(plan.q_start + count, plan.q_start + plan.q_tokens))]
    units = _spread(np.arange(len(plan.unit_lo)), count)
    return list(zip(plan.unit_lo[units].tolist(), plan.unit_hi[units].tolist(), strict=True))


@dataclass(frozen=True)
class DenseTime:
    """Seconds of dense attention over the whole stream; `measured`: share of its pairs that were run for it."""

    seconds: float
    measured: float


def dense_pairs(tokens: int, token_causal: bool) -> int:
    """Return the (query, key) pairs of dense attention."""
    return tokens * (tokens + 1) // 2 if token_causal else tokens * tokens


def dense_spec(spec: RoutingSpec, tokens: int) -> RoutingSpec:
    """Return the spec in which every query attends to every key, token-causally where `spec` does."""
    causal = "token" if spec.causal == "token" else "none"
    return RoutingSpec(chunks=Chunks(size=None), top_k=0, anchors=(first(tokens),), causal=causal, dense_queries=())


def time_dense(tokens: Tokens, spec: RoutingSpec, backend: str, advance: Advance) -> DenseTime:
    """Time dense attention through the same backend, part by part, until it is whole or DENSE_SECONDS are spent."""
    count = tokens.stream.tokens
    everything = dense_spec(spec, count)

    def part(lo: int, hi: int) -> None:
        q = tokens.q[:, lo:hi]
        api.attention(q, tokens.k, tokens.v, everything, stream=tokens.stream, q_start=lo, backend=backend)

    return _timed(part, count, spec.causal == "token", advance)


def time_torch(tokens: Tokens, spec: RoutingSpec, advance: Advance) -> DenseTime | None:
    """Time dense attention of PyTorch in the same way; None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    q, k, v = (torch.from_numpy(np.ascontiguousarray(x.swapaxes(1, 2))) for x in (tokens.q, tokens.k, tokens.v))
    attend = torch.nn.functional.scaled_dot_product_attention
    attend(q[:, :, :64], k[:, :, :64], v[:, :, :64])

    def part(lo: int, hi: int) -> None:
        # Under token causality a part of the queries runs against the keys up to its end.
        stop = hi if spec.causal == "token" else k.shape[2]
        attend(q[:, :, lo:hi], k[:, :, :stop], v[:, :, :stop])

    return _timed(part, tokens.stream.tokens, spec.causal == "token", advance)


def _timed(part: Callable[[int, int], object], count: int, token_causal: bool, advance: Advance) -> DenseTime:
    """Run parts of the queries until all are done or DENSE_SECONDS are spent, and scale by pairs."""
    total, seen, seconds = dense_pairs(count, token_causal), 0, 0.0
    for lo, hi in _parts(count, 16):
        start = time.perf_counter()
        part(lo, hi)
        seconds += time.perf_counter() - start
        seen += dense_pairs(hi, True) - dense_pairs(lo, True) if token_causal else (hi - lo) * count
        advance(max(seen / total, min(1.0, seconds / DENSE_SECONDS)))
        if seconds > DENSE_SECONDS:
            break
    return DenseTime(seconds * total / seen, seen / total)


def _parts(count: int, parts: int) -> Iterator[tuple[int, int]]:
    bounds = np.linspace(0, count, min(parts, count) + 1).astype(int).tolist()
    yield from pairwise(bounds)

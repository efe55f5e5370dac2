"""The numbers of a monitor: of a layer under one plan, of a layer, and of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.plan import Plan
from sparsemoc.spec.sample_plan import SamplePlan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlanSummary:
    """What a layer routed under one plan.

    Attributes:
        plan: the plan, of one sample.
        samples: how many samples were recorded.
        pairs: (heads,) query-key pairs attended to: anchors, dense rows and routes, each once.
        full: valid queries * valid keys, summed over the samples.
        chunk_load: (heads, chunks) queries that chose each chunk.
        reachable: (chunks,) whether a chunk is a candidate of some query.
        hits: (heads, shots, shots) queries of shot a with a route to shot b.
        queries: (shots,) queries of shot a that may have routes.
        open_shots: (shots, shots) whether a query of shot a has candidates in shot b.
    """

    plan: Plan
    samples: int
    pairs: Ints
    full: int
    chunk_load: Ints
    reachable: NDArray[np.bool_]
    hits: Ints
    queries: Ints
    open_shots: NDArray[np.bool_]

    @classmethod
    def of(
        cls, plan: Plan, samples: Iterable[tuple[SamplePlan, int]], chunk_load: Ints, hits: Ints, routed: Ints
    ) -> PlanSummary:
        """Add to what was counted on the device what the plans say, each as often as it was recorded."""
        facts = [(_Facts.of(sample), times) for sample, times in samples]
        return cls(
            plan=plan,
            samples=sum(times for _, times in facts),
            pairs=routed + sum(fact.anchored * times for fact, times in facts),
            full=sum(fact.full * times for fact, times in facts),
            chunk_load=chunk_load,
            reachable=np.any([fact.reachable for fact, _ in facts], axis=0),
            hits=hits,
            queries=np.sum([fact.queries * times for fact, times in facts], axis=0, dtype=np.int64),
            open_shots=np.any([fact.open_shots for fact, _ in facts], axis=0),
        )

    @property
    def dead_chunks(self) -> tuple[tuple[int, ...], ...]:
        """For each head the chunks that are a candidate of some query and that no query chose."""
        return tuple(tuple(np.flatnonzero(self.reachable & (load == 0)).tolist()) for load in self.chunk_load)

    @property
    def load_entropy(self) -> Floats:
        """(heads,) H / log(n) of the shares of the load, n reachable chunks; see `LayerSummary.load_entropy`."""
        load = self.chunk_load[:, self.reachable].astype(np.float64)
        total = load.sum(axis=1, keepdims=True)
        share = load / np.maximum(total, 1)
        entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
        most = np.log(load.shape[1]) if load.shape[1] > 1 else 0.0
        even: Floats = entropy / most if most else np.ones(len(load))
        return np.where(total[:, 0] > 0, even, 0.0)


@dataclass(frozen=True, eq=False)
class LayerSummary:
    """What a layer routed. With one plan these are the numbers of `Layout.report()`; several plans are joined.

    Attributes:
        plans: what was recorded under each plan, in the order in which they came.
    """

    plans: tuple[PlanSummary, ...]

    @property
    def samples(self) -> int:
        """How many samples were recorded."""
        return sum(part.samples for part in self.plans)

    @property
    def density(self) -> Floats:
        """(heads,) pairs / (valid queries * valid keys), both summed over all that was recorded; 0 where that is 0."""
        pairs = np.sum([part.pairs for part in self.plans], axis=0)
        full = sum(part.full for part in self.plans)
        return np.asarray(pairs / full if full else np.zeros(len(pairs)))

    @property
    def load_entropy(self) -> Floats:
        """(heads,) entropy of the chunk load over the reachable chunks, divided by its most: 0 ... 1.

        1: every reachable chunk is chosen equally often. 0: all queries choose one, or nothing is routed. Under
        causality it stays below 1, since later chunks have fewer queries to choose them. Plans are joined by their
        mean, each as heavy as its routes are many.
        """
        routes = np.array([part.chunk_load.sum(axis=1) for part in self.plans])
        entropy = np.array([part.load_entropy for part in self.plans])
        return np.asarray((routes * entropy).sum(axis=0) / np.maximum(routes.sum(axis=0), 1))

    @property
    def dead_chunks(self) -> Ints:
        """(heads,) reachable chunks that no query chose, summed over the plans."""
        counts: Ints = np.array([[len(dead) for dead in part.dead_chunks] for part in self.plans], np.int64)
        return np.asarray(counts.sum(axis=0))

    @property
    def dead_share(self) -> Floats:
        """(heads,) their share of the reachable chunks; 0 where there are none."""
        share: Floats = self.dead_chunks / max(1, sum(int(part.reachable.sum()) for part in self.plans))
        return share

    @property
    def shot_matrix(self) -> Floats:
        """(heads, shots, shots) share of the queries of shot a with a route to shot b; shots as in `Stream.shots`."""
        most = max(len(part.queries) for part in self.plans)
        hits, queries = np.zeros((len(self.plans[0].pairs), most, most)), np.zeros(most)
        for part in self.plans:
            shots = len(part.queries)
            hits[:, :shots, :shots] += part.hits
            queries[:shots] += part.queries
        return hits / np.maximum(queries, 1)[None, :, None]

    @property
    def open_shots(self) -> NDArray[np.bool_]:
        """(shots, shots) whether a query of shot a has candidates in shot b: elsewhere the shot matrix must be 0."""
        most = max(len(part.queries) for part in self.plans)
        found = np.zeros((most, most), bool)
        for part in self.plans:
            found[: len(part.queries), : len(part.queries)] |= part.open_shots
        return found


#: The numbers that a logger gets of each layer.
SCALARS = ("density", "load_entropy", "dead_chunks", "dead_share")


@dataclass(frozen=True, eq=False)
class Summary:
    """What was recorded, by layer."""

    layers: Mapping[str, LayerSummary]

    def __getitem__(self, layer: str) -> LayerSummary:
        """Return one layer's summary."""
        return self.layers[layer]

    def to_dict(self, *, heads: bool = False) -> dict[str, float]:
        """Return plain numbers for a logger: "layer/density", "layer/load_entropy", "layer/dead_chunks" and so on.

        Args:
            heads: whether each head's numbers are given too, as "layer/head_0/density".

        Returns:
            The mean over the heads of each, as Python floats.
        """
        found: dict[str, float] = {}
        for layer, summary in self.layers.items():
            for name in SCALARS:
                values = getattr(summary, name)
                found[f"{layer}/{name}"] = float(np.mean(values))
                if heads:
                    found |= {f"{layer}/head_{head}/{name}": float(value) for head, value in enumerate(values)}
        return found


@dataclass(frozen=True, eq=False)
class _Facts:
    """What the plan of a sample says, whatever is routed."""

    anchored: int
    full: int
    reachable: NDArray[np.bool_]
    queries: Ints
    open_shots: NDArray[np.bool_]

    @staticmethod
    @lru_cache(maxsize=256)  # the layers of a model share their plans
    def of(plan: SamplePlan) -> _Facts:
        """Read a plan."""
        valid_queries = int(plan.valid_keys[plan.q_start : plan.q_start + plan.q_tokens].sum())
        reachable = np.zeros(plan.chunks, bool)
        for lo, hi in zip(plan.candidate_lo, plan.candidate_hi, strict=True):
            reachable[lo:hi] = True
        queries, open_shots = _by_shot(plan)
        return _Facts(
            anchored=plan.anchor_rectangles.pairs(plan.reach, plan.token_causal),
            full=valid_queries * int(plan.valid_keys.sum()),
            reachable=reachable,
            queries=queries,
            open_shots=open_shots,
        )


def _by_shot(plan: SamplePlan) -> tuple[Ints, NDArray[np.bool_]]:
    """Return for each shot its valid queries that may have routes, and the shots in which they have candidates."""
    numbers = np.array([-1 if shot is None else shot for shot in plan.stream.shots], np.int64)
    shot_of_chunk = numbers[np.searchsorted(plan.stream.bounds, plan.chunk_bounds[:-1], side="right") - 1]
    shots = int(numbers.max()) + 1
    queries, open_shots = np.zeros(shots, np.int64), np.zeros((shots, shots + 1), bool)
    for run in np.flatnonzero(~plan.run_dense & (shot_of_chunk[plan.run_chunk] >= 0)):
        shot, lo, hi = shot_of_chunk[plan.run_chunk[run]], int(plan.run_lo[run]), int(plan.run_hi[run])
        queries[shot] += hi - lo
        for query in {lo, hi - 1}:  # within a run only a token window changes the candidates, at its ends
            open_shots[shot, shot_of_chunk[plan.candidates(query)]] = True
    return queries, open_shots[:, :-1]  # the last column is that of global text, number -1

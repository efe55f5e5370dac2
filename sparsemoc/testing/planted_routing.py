"""Planted wrong implementations: faults of chunking, candidates, scores and ranking."""

# ruff: noqa: D102  the steps that variants override are described in OracleImplementation
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsemoc.spec.chunks import Chunks
from sparsemoc.testing import oracle
from sparsemoc.testing.oracle_rules import Bools, Routes, candidate_mask, tokens_of
from sparsemoc.testing.planted import Planted
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Floats, Sample


class _OtherCandidates(Planted):
    """Selects among other candidates than it should."""

    def candidates(self, sample: Sample) -> Bools:
        """Return the wrong candidates, (units, chunks)."""
        raise NotImplementedError

    def select(self, sample: Sample) -> Routes:
        wrong = replace(sample)
        wrong.__dict__["candidates"] = self.candidates(sample)
        return oracle.select(wrong, self.scores(wrong), ranked=self.rank, dropped=self.drop)


def _candidates_of(sample: Sample, **changes: Any) -> Bools:
    spec = replace(sample.spec, **changes)
    return candidate_mask(spec, sample.stream, sample.units, sample.q_start, sample.q_tokens, sample.valid)


class CausalOffByOne(_OtherCandidates):
    """Under causal routing the own chunk is a candidate too (j <= c)."""

    def candidates(self, sample: Sample) -> Bools:
        mask = sample.candidates.copy()
        for number, unit in enumerate(sample.units):
            everything = _candidates_of(sample, causal="none")
            mask[number, unit.chunk] |= everything[number, unit.chunk]
        return mask


class AnchoredChunksAreCandidates(_OtherCandidates):
    """Chunks that the anchors cover whole still use up top_k: the own chunk counted in the budget."""

    def candidates(self, sample: Sample) -> Bools:
        return _candidates_of(sample, anchors=())


class CoverageCountsPadding(_OtherCandidates):
    """A chunk whose valid keys are all anchored stays a candidate because of its padding."""

    caught_by = "padded cover"

    def candidates(self, sample: Sample) -> Bools:
        spec, every = sample.spec, np.ones_like(sample.valid)
        mask = candidate_mask(spec, sample.stream, sample.units, sample.q_start, sample.q_tokens, every)
        chunk_of = tokens_of(spec, sample.stream).chunk
        return mask & (np.bincount(chunk_of[sample.valid], minlength=sample.chunks) > 0)


class EmptyChunksAreCandidates(_OtherCandidates):
    """A chunk of nothing but padding can be taken."""

    def candidates(self, sample: Sample) -> Bools:
        every = np.ones_like(sample.valid)
        return candidate_mask(sample.spec, sample.stream, sample.units, sample.q_start, sample.q_tokens, every)


class TextIsRoutable(_OtherCandidates):
    """Text chunks are candidates by default."""

    def candidates(self, sample: Sample) -> Bools:
        if sample.spec.routable is not None:
            return sample.candidates
        kinds = tuple({segment.kind for segment in sample.stream.segments})
        return _candidates_of(sample, routable=kinds)


class OneMemberCovers(_OtherCandidates):
    """A block leaves out a chunk as soon as one member's anchors cover it, not all of them."""

    def candidates(self, sample: Sample) -> Bools:
        singles = [[replace(unit, queries=(query,)) for query in unit.queries] for unit in sample.units]
        rows = [
            candidate_mask(sample.spec, sample.stream, one, sample.q_start, sample.q_tokens, sample.valid).all(axis=0)
            for one in singles
        ]
        return np.array(rows, bool).reshape(len(rows), sample.chunks)


class WrongTieOrder(Planted):
    """Ties go to the higher chunk."""

    caught_by = "ties"

    def rank(self, scores: Floats, candidates: Sequence[int]) -> list[int]:
        return sorted(candidates, key=lambda chunk: (-np.nan_to_num(scores[chunk], nan=np.inf), -chunk))


class NegativeZeroIsLess(Planted):
    """Scores are compared by their bits: -0 comes after +0."""

    caught_by = "ties"

    def scores(self, sample: Sample) -> Floats:
        means = oracle.centroids(sample)[:, sample.key_heads]
        # The sign that a sum of one product has; einsum itself never gives -0.
        negative = np.signbit(oracle.unit_queries(sample)[:, :, None, 0] * means.transpose(1, 0, 2)[None, :, :, 0])
        scores = oracle.scores(sample)
        return np.where((scores == 0) & negative.swapaxes(0, 1), -1e-300, scores)


class NanRanksLast(Planted):
    """A NaN score is hidden behind all others."""

    caught_by = "NaN"

    def rank(self, scores: Floats, candidates: Sequence[int]) -> list[int]:
        return sorted(candidates, key=lambda chunk: (-np.nan_to_num(scores[chunk], nan=-np.inf), chunk))


class LowPrecisionScores(Planted):
    """Scores are rounded to 11 bits, as by tensor cores without a low half."""

    def scores(self, sample: Sample) -> Floats:
        with np.errstate(over="ignore"):
            return oracle.scores(sample).astype(np.float16).astype(np.float64)


class SumScores(Planted):
    """Centroids are sums: long chunks win."""

    def scores(self, sample: Sample) -> Floats:
        chunk_of = tokens_of(sample.spec, sample.stream).chunk
        return oracle.scores(sample) * np.bincount(chunk_of[sample.valid], minlength=sample.chunks)


class PaddingInMean(Planted):
    """Centroids are divided by the nominal length of the chunk, padding counted."""

    caught_by = "padded selection"

    def scores(self, sample: Sample) -> Floats:
        chunk_of = tokens_of(sample.spec, sample.stream).chunk
        valid = np.bincount(chunk_of[sample.valid], minlength=sample.chunks)
        return oracle.scores(sample) * valid / np.bincount(chunk_of)


class AbsoluteScores(Planted):
    """Chunks win by the size of the score."""

    def scores(self, sample: Sample) -> Floats:
        return np.abs(oracle.scores(sample))


class AbsentInBlockMean(Planted):
    """A block's mean query is that of its first member: the others are thought absent."""

    def scores(self, sample: Sample) -> Floats:
        single = replace(sample)
        single.__dict__["units"] = [replace(unit, queries=unit.queries[:1]) for unit in sample.units]
        return oracle.scores(single)


class TopKOffByOne(Planted):
    """One route too few."""

    def rank(self, scores: Floats, candidates: Sequence[int]) -> list[int]:
        return oracle.rank(scores, candidates)[:-1]


class FirstHeadsTopK(Planted):
    """top_k per head is read for the first head alone."""

    def samples(self, problem: Problem) -> list[Sample]:
        top_k = problem.spec.top_k
        if isinstance(top_k, tuple):
            spec = replace(problem.spec, top_k=(top_k[0],) * len(top_k))
            slots = problem.samples()[0].slots
            return [replace(sample, spec=spec, slots=slots) for sample in problem.samples()]
        return problem.samples()


class RoutesOfOneHead(Planted):
    """All query heads of a group take the routes of the first one."""

    def scores(self, sample: Sample) -> Floats:
        scores = oracle.scores(sample)
        return scores[[sample.key_heads.index(head) for head in sample.key_heads]]


class ShortTail(Planted):
    """Chunks are cut with a short tail instead of balanced."""

    def samples(self, problem: Problem) -> list[Sample]:
        chunks = problem.spec.chunks
        if chunks.bounds is None and chunks.tail == "balanced":
            spec = replace(problem.spec, chunks=Chunks(size=chunks.size, align=chunks.align, tail="short"))
            return [replace(sample, spec=spec) for sample in problem.samples()]
        return problem.samples()


class FirstQueryIsZero(Planted):
    """Queries are thought to start the stream, wherever they stand."""

    def samples(self, problem: Problem) -> list[Sample]:
        return [replace(sample, q_start=0) for sample in problem.samples()]


class DenseQueriesRouted(Planted):
    """Dense queries take routes as well."""

    def samples(self, problem: Problem) -> list[Sample]:
        spec = replace(problem.spec, dense_queries=())
        return [replace(sample, spec=spec) for sample in problem.samples()]


class PastScopeIgnored(Planted):
    """Dense queries see later chunks although dense_scope is "past"."""

    caught_by = "forward"

    def samples(self, problem: Problem) -> list[Sample]:
        spec = replace(problem.spec, dense_scope="all")
        return [replace(sample, spec=spec) for sample in problem.samples()]


class FirstSampleLengths(Planted):
    """The whole batch is thought to have the first sample's padding."""

    caught_by = "forward"

    def samples(self, problem: Problem) -> list[Sample]:
        samples = problem.samples()
        if problem.packed:
            return samples
        return [replace(sample, key_lengths=samples[0].key_lengths) for sample in samples]


class PaddingQueriesAnswer(Planted):
    """Queries in padding get an answer."""

    caught_by = "padding"

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        mask = self.mask(sample, selected) | (~sample.valid_queries[:, None] & sample.valid)
        return oracle.attention(q, k, v, mask, sample.factor)

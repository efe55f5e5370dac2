"""The oracle as an implementation, cut into steps that a planted wrong one overrides one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsemoc.testing import checks, oracle, oracle_random
from sparsemoc.testing.implementations import Forward
from sparsemoc.testing.oracle_rules import Bools, Routes
from sparsemoc.testing.problems import Problem, dtype_of
from sparsemoc.testing.sample import Floats, Sample, join


class OracleImplementation:
    """Right by construction: the suite must accept it, and reject each variant with one step changed."""

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    # The steps, one sample at a time.

    def samples(self, problem: Problem) -> list[Sample]:
        """Cut the problem into samples."""
        return problem.samples()

    def scores(self, sample: Sample) -> Floats:
        """Score every chunk for every unit."""
        return oracle.scores(sample)

    def rank(self, scores: Floats, candidates: Sequence[int]) -> list[int]:
        """Order candidates best first."""
        return oracle.rank(scores, candidates)

    def drop(self, *arguments: Any) -> list[int]:
        """Apply route dropout to one unit."""
        return oracle_random.drop(*arguments)

    def select(self, sample: Sample) -> Routes:
        """Select chunks."""
        return oracle.select(sample, self.scores(sample), ranked=self.rank, dropped=self.drop)

    def mask(self, sample: Sample, selected: Routes) -> Bools:
        """Expand a selection to pairs."""
        return oracle.mask_of(sample, selected)

    def attention(self, sample: Sample, q: Floats, k: Floats, v: Floats, selected: Routes) -> tuple[Floats, Floats]:
        """Return out and lse of float64 arrays."""
        return oracle.attention(q, k, v, self.mask(sample, selected), sample.factor)

    def gradients(
        self, sample: Sample, arrays: tuple[Floats, Floats, Floats], selected: Routes, d_out: Floats, d_lse: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv of float64 arrays."""
        return oracle.gradients(*arrays, self.mask(sample, selected), sample.factor, d_out, d_lse)

    # The whole call.

    def forward(self, problem: Problem) -> Forward:
        """Route and attend."""
        samples = self.samples(problem)
        chosen = [self.select(sample) for sample in samples]
        selected = join(chosen, problem.packed, 1)
        out, lse = self._attend(problem, samples, chosen)
        shape = (problem.batch, problem.heads, problem.queries, problem.tokens)
        mask = np.zeros(shape, bool)
        row = 0
        for number, (sample, one) in enumerate(zip(samples, chosen, strict=True)):
            own = slice(row, row + len(sample.k))
            place = mask[0, :, own, own] if problem.packed else mask[number]
            place[...] = self.mask(sample, one)
            row += len(sample.k)
        return Forward(out, lse, selected[None] if problem.packed else selected, mask)

    def _attend(self, problem: Problem, samples: list[Sample], chosen: list[Routes]) -> tuple[Floats, Floats]:
        outs, lses = [], []
        for sample, selected in zip(samples, chosen, strict=True):
            out, lse = self.attention(sample, *_wide(sample), selected)
            outs.append(out.astype(dtype_of(problem.dtype)))
            lses.append(lse.astype(np.float64 if problem.dtype == "float64" else np.float32))
        return join(outs, problem.packed, 0), join(lses, problem.packed, 1)

    def attend(self, problem: Problem, selected: Routes) -> tuple[Floats, Floats]:
        """Return out and lse for a given selection."""
        return self._attend(problem, self.samples(problem), checks.selections(problem, selected))

    def backward(self, problem: Problem) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv."""
        d_outs = checks.pieces(problem, problem.arrays.d_out.astype(np.float64), 0)
        d_lses = checks.pieces(problem, problem.arrays.d_lse.astype(np.float64), 1)
        found = [
            self.gradients(sample, _wide(sample), self.select(sample), d_out, d_lse)
            for sample, d_out, d_lse in zip(self.samples(problem), d_outs, d_lses, strict=True)
        ]
        dtype = dtype_of(problem.dtype)
        dq, dk, dv = (join(parts, problem.packed, 0).astype(dtype) for parts in zip(*found, strict=True))
        return dq, dk, dv

    def pool(self, problem: Problem) -> Floats:
        """Return the centroids."""
        means = [oracle.centroids(sample).astype(np.float32) for sample in self.samples(problem)]
        if problem.packed:
            means = [np.concatenate(means)]
        return np.stack(means).swapaxes(1, 2)


def _wide(sample: Sample) -> tuple[Floats, Floats, Floats]:
    return sample.q.astype(np.float64), sample.k.astype(np.float64), sample.v.astype(np.float64)

"""The Numba backend: what it is, and how its kernels are called."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.numba import cost
from sparsemoc.backends.numba.config import NumbaConfig
from sparsemoc.backends.numba.hardware import hardware
from sparsemoc.backends.numba.intrinsics import vector_bytes
from sparsemoc.backends.numba.launch import attend_sample, part, pool_sample
from sparsemoc.backends.numba.launch_backward import backward_sample
from sparsemoc.backends.numba.launch_routing import route_sample
from sparsemoc.backends.numba.search import search_space
from sparsemoc.backends.numba.threads import thread_count, workers
from sparsemoc.backends.protocol import (
    Capabilities,
    Estimate,
    Hardware,
    Operation,
    Problem,
    Randomness,
    Result,
    empty_like,
    lse_dtype,
)
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.validate import check_numbers

Floats = NDArray[Any]


class NumbaBackend:
    """Parallel CPU kernels. Accumulates in float32, float64 for float64 input; bitwise repeatable."""

    name = "numba"
    capabilities = Capabilities(
        frameworks=("numpy",),
        devices=("cpu",),
        dtypes=("float16", "bfloat16", "float32", "float64"),
        max_head_dim=256,
        backward=True,
        deterministic=True,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Return None if the backend can run the problem, else the reason with its values."""
        return self.capabilities.refuses(problem) or cost.refused(problem)

    def version(self) -> str:
        """Return the versions and the vector width that results depend on."""
        return f"numba {numba.__version__}, {8 * vector_bytes()}-bit vectors, {numba.config.NUMBA_NUM_THREADS} threads"

    def default_config(self, problem: Problem) -> NumbaConfig:
        """Return the config used where the caller gives none."""
        return NumbaConfig()

    def search_space(self, problem: Problem, operation: Operation) -> list[NumbaConfig]:
        """Return the configs worth trying for an operation, the default first; see `search.search_space`."""
        return search_space(problem, operation, self.default_config(problem), thread_count())

    def hardware(self, problem: Problem) -> Hardware:
        """Return the processor."""
        return hardware()

    def estimate(self, problem: Problem, operation: Operation, config: NumbaConfig) -> Estimate:
        """Return what a config would cost on as many threads as there are now; see `cost`."""
        return cost.estimate(problem, operation, config, thread_count())

    def pool(
        self, problem: Problem, k: Floats, key_lengths: NDArray[np.int32] | None, *, config: NumbaConfig | None = None
    ) -> NDArray[np.float32]:
        """Return the mean key of each chunk, summed in float64 and rounded once; 0 where a chunk has no key."""
        samples = problem.plan.batch(problem.batch, key_lengths)
        chunks = sum(s.plan.chunks for s in samples) if problem.plan.packed else problem.plan.chunks
        centroids = np.empty((k.shape[0], problem.kv_heads, chunks, problem.head_dim), np.float32)
        first = 0
        with workers() as threads:
            for sample in samples:
                plan = sample.plan
                target = centroids[sample.row, :, first : first + plan.chunks]
                pool_sample(plan, part(k, sample, False), target, threads)
                first += plan.chunks if problem.plan.packed else 0
        return centroids

    def route(
        self,
        problem: Problem,
        q: Floats,
        centroids: NDArray[np.float32],
        key_lengths: NDArray[np.int32] | None,
        randomness: Randomness | None,
        *,
        config: NumbaConfig | None = None,
    ) -> NDArray[np.int32]:
        """Return `Layout.selected`: the top_k candidates of each unit by score, ties to the lower chunk."""
        plan = problem.plan
        selected = np.full((q.shape[0], problem.heads, plan.q_tokens, plan.slots), -1, np.int32)
        first = 0
        with workers() as threads:
            for batch, sample in enumerate(plan.batch(problem.batch, key_lengths)):
                means = centroids[sample.row, :, first : first + sample.plan.chunks].transpose(1, 0, 2)
                target = selected[sample.row, :, sample.q_row : sample.q_row + sample.plan.q_tokens]
                queries = part(q, sample, True)
                route_sample(problem, sample.plan, queries, means, randomness, batch, target, threads)
                first += sample.plan.chunks if plan.packed else 0
        return selected

    def attend(
        self,
        problem: Problem,
        q: Floats,
        k: Floats,
        v: Floats,
        layout: Layout,
        scale: float,
        *,
        config: NumbaConfig | None = None,
    ) -> Result:
        """Return out and lse by online softmax over anchored rectangles and routed chunks."""
        out = empty_like(q, (*q.shape[:3], problem.v_head_dim), q.dtype)
        lse = np.empty((q.shape[0], problem.heads, q.shape[1]), lse_dtype(problem.dtype))
        with workers() as threads:
            for sample in layout.samples():
                queries = slice(sample.q_row, sample.q_row + sample.plan.q_tokens)
                check_numbers(layout.rows(sample), sample)
                attend_sample(
                    problem,
                    sample.plan,
                    (part(q, sample, True), part(k, sample, False), part(v, sample, False)),
                    layout.rows(sample),
                    (out[sample.row, queries], lse[sample.row, :, queries]),
                    scale,
                    config or NumbaConfig(),
                    threads,
                )
        return Result(out, lse)

    def attend_backward(
        self,
        problem: Problem,
        q: Floats,
        k: Floats,
        v: Floats,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Floats,
        d_lse: Floats | None,
        *,
        config: NumbaConfig | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv in five matrix products per tile; the order of all sums is fixed."""
        dq, dk, dv = (empty_like(array, array.shape, array.dtype) for array in (q, k, v))
        lse_grad = np.zeros_like(result.lse) if d_lse is None else d_lse
        with workers() as threads:
            for sample in layout.samples():
                queries = slice(sample.q_row, sample.q_row + sample.plan.q_tokens)
                check_numbers(layout.rows(sample), sample)
                backward_sample(
                    problem,
                    sample.plan,
                    (part(q, sample, True), part(k, sample, False), part(v, sample, False)),
                    layout.rows(sample),
                    (part(result.out, sample, True), result.lse[sample.row, :, queries]),
                    (part(d_out, sample, True), lse_grad[sample.row, :, queries]),
                    (part(dq, sample, True), part(dk, sample, False), part(dv, sample, False)),
                    scale,
                    config or NumbaConfig(),
                    threads,
                )
        return dq, dk, dv


BACKEND = NumbaBackend()
